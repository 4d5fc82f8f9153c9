// The bodies of the noise and component kernels, as functions of a place in the grid.
#pragma once

#include "cuda/draws.h"
#include "cuda/operands.h"

namespace gmmkernel {

// Whole vectors of 16 bytes: for results that are aligned to them.
template <int32_t dtype>
GMM_INLINE void standard_normal_common(const gmm_normal_arguments& a, const Tiling& tiling, const Place& place,
                                       const PhiloxKeys& shared_keys) {
  constexpr uint32_t n = Format<dtype>::count;
  const PhiloxKeys keys = shared_keys;
  const int64_t sample = place.sample(), first = place.first(tiling);
  const uint32_t count = place.count(tiling);
  const int64_t step = index_at(a.step, sample);
  const bool valid = is_step(step);
  const uint64_t block = static_cast<uint64_t>(a.first_element.value + first) / 4;
  const uint32_t block_low = static_cast<uint32_t>(block), block_high = static_cast<uint32_t>(block >> 32);
  void* result = advance(a.result.data, sample * a.result.batch_stride + first, dtype);
  for (uint32_t i = n * place.thread; i < count; i += n * block_threads) {
    float z[n];
    for (uint32_t j = 0; j < n; j += 4) {
      float four[4];
      draw_normals(keys, block_low + (i + j) / 4, block_high, static_cast<uint32_t>(step),
                   static_cast<Stream>(a.stream), four);
      for (int e = 0; e < 4; ++e) z[j + e] = valid ? four[e] : bits_float(0x7FC00000);
    }
    store128<dtype>(result, i, Format<dtype>::pack(z));
  }
}

// Any type, size and alignment.
GMM_INLINE void standard_normal_any(const gmm_normal_arguments& a, const Tiling& tiling, const Place& place,
                                    const PhiloxKeys& keys) {
  const int64_t sample = place.sample(), first = place.first(tiling);
  const uint32_t count = place.count(tiling);
  const int64_t step = index_at(a.step, sample);
  const int64_t shard = index_at(a.first_element, sample);
  const bool valid = is_step(step) && shard >= 0;
  const uint64_t element = static_cast<uint64_t>(shard) + static_cast<uint64_t>(first);
  void* result = advance(a.result.data, sample * a.result.batch_stride + first, a.result.dtype);
  for (uint32_t i = 4 * place.thread; i < count; i += 4 * block_threads) {
    float z[4] = {bits_float(0x7FC00000), bits_float(0x7FC00000), bits_float(0x7FC00000), bits_float(0x7FC00000)};
    if (valid) {
      draw_normals_from(keys, element + i, static_cast<uint32_t>(step), static_cast<Stream>(a.stream), z);
    }
    if (a.result.dtype == GMM_FLOAT64) {
      const double wide[4] = {z[0], z[1], z[2], z[3]};
      store_four(result, a.result.dtype, i, count, wide);
    } else {
      store_four(result, a.result.dtype, i, count, z);
    }
  }
}

// The component of one sample; -1 where its row or step is out of range.
GMM_INLINE void draw_component_body(const gmm_component_arguments& a, int64_t sample) {
  const int64_t row = a.cdf_rows == 1 ? 0 : index_at(a.row, sample), step = index_at(a.step, sample);
  const bool valid = row >= 0 && row < a.cdf_rows && is_step(step);
  int64_t component = valid ? 0 : -1;
  if (valid && a.components > 1) {
    component = choose_component(philox_keys(static_cast<uint64_t>(a.seeds[sample])), static_cast<uint32_t>(step),
                                 a.cdf + row * (a.components - 1), a.components);
  }
  a.result[sample] = component;
}

}  // namespace gmmkernel
