#include "cpu/lanes_avx512.h"

#define GMM_LANES Avx512Lanes
#include "lane_functions.inl"

const LaneFunctions& avx512_lane_functions() {
  static constexpr LaneFunctions functions = functions_named("avx512");
  return functions;
}
