#include "lane_functions.h"

#include "cpu/dispatch.h"

std::vector<const LaneFunctions*> available_lane_functions() {
  std::vector<const LaneFunctions*> available = {&portable_lane_functions()};
#if defined(GMM_X86)
  if (gmmkernel::kernels_for(GMM_AVX2) != nullptr) available.push_back(&avx2_lane_functions());
  if (gmmkernel::kernels_for(GMM_AVX512) != nullptr) available.push_back(&avx512_lane_functions());
#endif
  return available;
}
