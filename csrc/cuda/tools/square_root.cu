// Proof by trying everything, on the device: the kernels' own square root, clamps and conversions give the bits of the
// correctly rounded or portable ones. Built and run by tools/gpu_check.py. A line for each: name, arguments tried,
// mismatches, and the first argument that differs, if any; the exit status is 1 if there was one.

#include <cuda_runtime.h>

#include <cstdio>

#include "cuda/formats.h"
#include "cuda/lanes_cuda.h"

namespace {

using namespace gmmkernel;

struct Tally {
  unsigned long long mismatches;
  unsigned long long first;  // smallest argument that differs
};

__device__ void note(bool same, uint64_t argument, Tally* tally) {
  if (same) return;
  atomicAdd(&tally->mismatches, 1ULL);
  atomicMin(&tally->first, static_cast<unsigned long long>(argument));
}

__device__ bool same_float(float got, float expected) {
  return float_bits(got) == float_bits(expected) || (got != got && expected != expected);
}

__device__ bool same_half(uint32_t got, uint32_t expected, uint32_t infinity) {
  return got == expected || ((got & 0x7FFF) > infinity && (expected & 0x7FFF) > infinity);
}

struct SquareRoot {
  static constexpr const char* name = "square_root";
  __device__ static void check(uint32_t argument, Tally* tally) {
    using Both = Pairs<CudaLanes>;
    const float a = bits_float(argument), expected = __fsqrt_rn(a);
    const Both::real left = Both::sqrt({a, 1.0f}), right = Both::sqrt({1.0f, a});
    const bool pairs = same_float(left.first, expected) && same_float(right.second, expected);
    note(pairs && float_bits(CudaLanes::sqrt(a)) == float_bits(expected), argument, tally);
  }
};

// Each value in both halves of a pair, beside another one.
struct ToBfloat16 {
  static constexpr const char* name = "float_to_bfloat16";
  __device__ static void check(uint32_t argument, Tally* tally) {
    const float a = bits_float(argument), other = bits_float(argument * 0x9E3779B9u + 0x7F4A7C15u);
    const uint32_t expected = float_to_bfloat16(a);
    const bool low = same_half(Format<GMM_BFLOAT16>::pair(a, other) & 0xFFFF, expected, 0x7F80);
    const bool high = same_half(Format<GMM_BFLOAT16>::pair(other, a) >> 16, expected, 0x7F80);
    note(low && high, argument, tally);
  }
};

struct ToFloat16 {
  static constexpr const char* name = "float_to_float16";
  __device__ static void check(uint32_t argument, Tally* tally) {
    const float a = bits_float(argument), other = bits_float(argument * 0x9E3779B9u + 0x7F4A7C15u);
    const uint32_t expected = float_to_float16(a);
    const bool low = same_half(Format<GMM_FLOAT16>::pair(a, other) & 0xFFFF, expected, 0x7C00);
    const bool high = same_half(Format<GMM_FLOAT16>::pair(other, a) >> 16, expected, 0x7C00);
    note(low && high, argument, tally);
  }
};

// Every pair of two 16-bit numbers, unpacked from one word.
template <int32_t dtype>
struct Unpack {
  static constexpr const char* name = dtype == GMM_BFLOAT16 ? "bfloat16_to_float" : "float16_to_float";
  __device__ static float expected(uint32_t half) {
    const auto bits = static_cast<uint16_t>(half);
    return dtype == GMM_BFLOAT16 ? bfloat16_to_float(bits) : float16_to_float(bits);
  }
  __device__ static void check(uint32_t argument, Tally* tally) {
    float values[8];
    Format<dtype>::unpack(Bits128{{argument, ~argument, argument, ~argument}}, values);
    const bool low = same_float(values[0], expected(argument & 0xFFFF));
    const bool high = same_float(values[1], expected(argument >> 16));
    note(low && high && same_float(values[6], expected(~argument & 0xFFFF)), argument, tally);
  }
};

// Against bounds that are neither zero nor NaN, which is where the kernels use them.
struct Clamp {
  static constexpr const char* name = "clamp";
  __device__ static void check(uint32_t argument, Tally* tally) {
    const float bounds[] = {1.0f, 0.8f, 0x1p-149f, 0x1p-126f, 3.4028234663852886e38f, bits_float(0x7F800000)};
    const float a = bits_float(argument);
    bool same = true;
    for (const float bound : bounds) {
      for (const float signed_bound : {bound, -bound}) {
        same &= same_float(CudaLanes::at_least(a, signed_bound), ScalarLanes::at_least(a, signed_bound));
        same &= same_float(CudaLanes::at_most(a, signed_bound), ScalarLanes::at_most(a, signed_bound));
      }
    }
    note(same, argument, tally);
  }
};

template <class Check>
__global__ void try_all(uint64_t first, uint64_t last, Tally* tally) {
  const uint64_t stride = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  for (uint64_t i = first + static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i <= last; i += stride) {
    Check::check(static_cast<uint32_t>(i), tally);
  }
}

bool good(cudaError_t error, const char* what) {
  if (error != cudaSuccess) std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  return error == cudaSuccess;
}

// Whether every argument from first to last, as bits, gives what it should.
template <class Check>
bool run(Tally* tally, uint64_t first, uint64_t last) {
  Tally result = {0, ~0ULL};
  if (!good(cudaMemcpy(tally, &result, sizeof result, cudaMemcpyHostToDevice), Check::name)) return false;
  try_all<Check><<<4096, 256>>>(first, last, tally);
  if (!good(cudaGetLastError(), Check::name)) return false;
  if (!good(cudaMemcpy(&result, tally, sizeof result, cudaMemcpyDeviceToHost), Check::name)) return false;
  std::printf("%s %llu %llu", Check::name, static_cast<unsigned long long>(last - first + 1), result.mismatches);
  if (result.mismatches != 0) std::printf(" 0x%08llx", result.first);
  std::printf("\n");
  std::fflush(stdout);
  return result.mismatches == 0;
}

}  // namespace

int main() {
  Tally* tally = nullptr;
  if (!good(cudaMalloc(&tally, sizeof *tally), "cudaMalloc")) return 1;
  constexpr uint64_t all = 0xFFFFFFFF;
  // Arguments of a radius: 2^-31 to 45, its largest is 64 ln 2 = 44.4.
  bool right = run<SquareRoot>(tally, float_bits(0x1p-31f), float_bits(45.0f));
  right &= run<ToBfloat16>(tally, 0, all);
  right &= run<ToFloat16>(tally, 0, all);
  right &= run<Unpack<GMM_BFLOAT16>>(tally, 0, all);
  right &= run<Unpack<GMM_FLOAT16>>(tally, 0, all);
  right &= run<Clamp>(tally, 0, all);
  cudaFree(tally);
  return right ? 0 : 1;
}
