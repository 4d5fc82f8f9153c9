#include "cpu/lanes_portable.h"

#define GMM_LANES PortableLanes
#include "lane_functions.inl"

const LaneFunctions& portable_lane_functions() {
  static constexpr LaneFunctions functions = functions_named("portable");
  return functions;
}
