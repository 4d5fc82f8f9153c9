#include "cpu/lanes_avx2.h"

#define GMM_LANES Avx2Lanes
#include "lane_functions.inl"

const LaneFunctions& avx2_lane_functions() {
  static constexpr LaneFunctions functions = functions_named("avx2");
  return functions;
}
