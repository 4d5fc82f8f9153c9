#include "cpu/dispatch.h"

#if defined(GMM_X86)
#include <cpuid.h>
#endif

namespace gmmkernel {
namespace {

#if defined(GMM_X86)
// Not every compiler's __builtin_cpu_supports knows this name.
bool has_f16c() {
  unsigned int eax, ebx, ecx, edx;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

bool has_avx2() {
#if defined(GMM_X86)
  // Asked once: a virtual machine may take microseconds to answer CPUID.
  static const bool has = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  return has;
#else
  return false;
#endif
}

bool has_avx512() {
#if defined(GMM_X86)
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

}  // namespace

gmm_instruction_set best_instruction_set() {
  static const gmm_instruction_set best = has_avx512() ? GMM_AVX512 : has_avx2() ? GMM_AVX2 : GMM_PORTABLE;
  return best;
}

const Kernels* kernels_for(int32_t instruction_set) {
  switch (instruction_set == GMM_BEST ? best_instruction_set() : instruction_set) {
    case GMM_PORTABLE:
      return &portable_kernels();
#if defined(GMM_X86)
    case GMM_AVX2:
      return has_avx2() ? &avx2_kernels() : nullptr;
    case GMM_AVX512:
      return has_avx512() ? &avx512_kernels() : nullptr;
#endif
    default:
      return nullptr;
  }
}

}  // namespace gmmkernel
