// What a tile draws: its sample's component, once for the block, and every element's noise.
#pragma once

#include "common/layout.h"
#include "cuda/lanes_cuda.h"
#include "gmmkernel/normal.h"
#include "gmmkernel/transition.h"

namespace gmmkernel {

// ---- the first warp ----

#if defined(__CUDA_ARCH__)
constexpr uint32_t gathering_lanes = 32;
#else
constexpr uint32_t gathering_lanes = 1;
#endif

// How many values of the cdf the word reaches, counted by all lanes together.
GMM_INLINE uint32_t count_reached_by_lanes(const int64_t* cdf, uint32_t count, uint32_t word, uint32_t lane) {
  uint32_t reached = 0;
  GMM_NO_UNROLL
  for (uint32_t k = lane; k < count; k += gathering_lanes) {
    reached += static_cast<int64_t>(word) >= cdf[k] ? 1 : 0;
  }
#if defined(__CUDA_ARCH__)
  reached = __reduce_add_sync(0xFFFFFFFF, reached);
#endif
  return reached;
}

GMM_INLINE uint32_t component_word(const PhiloxKeys& keys, uint32_t step) {
  uint32_t words[4];
  random_words<ScalarLanes>(keys, 0, step, Stream::component, words);
  return words[0];
}

// The component of a sample that takes the given coefficient row, of at least two.
GMM_INLINE uint32_t draw_component(const gmm_mixture& m, int64_t row, const PhiloxKeys& keys, uint32_t step,
                                   uint32_t lane) {
  const uint32_t count = static_cast<uint32_t>(m.components) - 1;  // at most 1023
  return count_reached_by_lanes(m.cdf + table_row(m.cdf_rows, row) * count, count, component_word(keys, step), lane);
}

// ---- every thread ----

// The four normals of one Philox block, the second two beside the first.
GMM_INLINE void draw_normals(const PhiloxKeys& keys, uint32_t block_low, uint32_t block_high, uint32_t step,
                             Stream stream, float (&z)[4]) {
  uint32_t words[4] = {block_low, block_high, step, static_cast<uint32_t>(stream)};
  philox<CudaLanes>(keys, words);
  using Both = Pairs<CudaLanes>;
  Both::real cosines, sines;
  two_normals<Both>({words[0], words[2]}, {words[1], words[3]}, cosines, sines);
  z[0] = cosines.first;
  z[1] = sines.first;
  z[2] = cosines.second;
  z[3] = sines.second;
}

// The normals of four elements in a row, whichever the first is: of one Philox block, or of two.
GMM_INLINE void draw_normals_from(const PhiloxKeys& keys, uint64_t element, uint32_t step, Stream stream,
                                  float (&z)[4]) {
  const uint64_t block = element / 4;
  draw_normals(keys, static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), step, stream, z);
  const uint32_t lead = static_cast<uint32_t>(element % 4);
  if (lead == 0) return;
  float next[4];
  draw_normals(keys, static_cast<uint32_t>(block + 1), static_cast<uint32_t>((block + 1) >> 32), step, stream, next);
  GMM_NO_UNROLL
  for (uint32_t i = 0; i < lead; ++i) {
    z[0] = z[1];
    z[1] = z[2];
    z[2] = z[3];
    z[3] = next[0];
    next[0] = next[1];
    next[1] = next[2];
  }
}

}  // namespace gmmkernel
