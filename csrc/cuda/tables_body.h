// The bodies of the kernels for gradients of offsets and std. A block adds up a tile of one entry of the table: its
// threads look at 256 samples at a time, each at one, for those that used the entry, then go through these in the order
// of the batch with the sums of their own elements in registers.
#pragma once

#include "cuda/draws.h"
#include "cuda/operands.h"

namespace gmmkernel {

// A row of [rows][of_row][elements].
struct Table {
  void* data;
  int64_t rows, of_row, elements;
};

GMM_INLINE Table offsets_of(const gmm_step_backward_arguments& b) {
  const gmm_mixture& m = b.step.mixture;
  return {b.grad_offsets, m.offset_rows, m.components, b.step.elements};
}

GMM_INLINE Table std_of(const gmm_step_backward_arguments& b) {
  const gmm_mixture& m = b.step.mixture;
  return {b.grad_std, m.std_rows, m.std_components, m.std_elements};
}

// ---- a round's samples that used an entry, a bit each ----

GMM_INLINE void set_user_bit(uint32_t (&words)[block_threads / 32], uint32_t thread, bool uses) {
#if defined(__CUDA_ARCH__)
  const uint32_t word = __ballot_sync(0xFFFFFFFF, uses);
  if (thread % 32 == 0) words[thread / 32] = word;
#else
  if (thread % 32 == 0) words[thread / 32] = 0;
  words[thread / 32] |= static_cast<uint32_t>(uses) << thread % 32;
#endif
}

// Calls visit(user) for each, in their order.
template <class Visit>
GMM_INLINE void for_users(const uint32_t (&words)[block_threads / 32], Visit&& visit) {
  GMM_NO_UNROLL
  for (uint32_t word = 0; word < block_threads / 32; ++word) {
    GMM_NO_UNROLL
    for (uint32_t bits = words[word]; bits != 0; bits &= bits - 1) {
      visit(32 * word + 31 - ScalarLanes::count_leading_zeros(bits & -bits));
    }
  }
}

// ---- offsets and std of steps ----

// The samples of a round that used an entry, a bit each, and what is needed of them.
template <class T>
struct Users {
  uint32_t bits[block_threads / 32];
  T weight[block_threads];  // the row's OFFSET
  uint64_t seed[block_threads];
  uint32_t step[block_threads];
};

// Whether the component is the one that a sample draws: of the ascending cdf it reaches just those before.
GMM_INLINE bool draws_component(const gmm_step_arguments& a, int64_t sample, int64_t row, uint32_t step,
                                int64_t component) {
  const gmm_mixture& m = a.mixture;
  const int64_t* cdf = m.cdf + table_row(m.cdf_rows, row) * (m.components - 1);
  const int64_t word = component_word(philox_keys(static_cast<uint64_t>(a.seeds[sample])), step);
  return (component == 0 || word >= cdf[component - 1]) && (component == m.components - 1 || word < cdf[component]);
}

// One thread's sample of the round that begins at sample `first`.
template <class T>
GMM_INLINE void find_user(const gmm_step_arguments& a, const Table& table, int64_t entry, int64_t first,
                          uint32_t thread, Users<T>& users) {
  const int64_t sample = first + thread;
  bool uses = false;
  if (sample < a.batch) {
    const int64_t row = index_at(a.row, sample), step = index_at(a.step, sample);
    const int64_t component = entry - table_row(table.rows, row) * table.of_row;  // of those that the row has
    uses = row >= 0 && row < a.coefficient_rows && is_step(step) && component >= 0 && component < table.of_row &&
           (table.of_row == 1 || draws_component(a, sample, row, static_cast<uint32_t>(step), component));
    if (uses) {
      users.weight[thread] = static_cast<const Row<T>*>(a.coefficients)[row].offset;
      users.seed[thread] = static_cast<uint64_t>(a.seeds[sample]);
      users.step[thread] = static_cast<uint32_t>(step);
    }
  }
  set_user_bit(users.bits, thread, uses);
}

// Adds what the round's samples give to a thread's four elements, the i-th of the tile and those after it.
template <class T, bool noise>
GMM_INLINE void add_users(const gmm_step_backward_arguments& b, const Users<T>& users, int64_t first_sample,
                          int64_t first, uint32_t i, uint32_t count, T (&sum)[4]) {
  using Lanes = typename LanesOf<T>::type;
  if (i >= count) return;
  const uint64_t block = static_cast<uint64_t>(first) / 4;
  for_users(users.bits, [&](uint32_t user) {
    T grad[4];
    load_four(sample_at<any_dtype>(b.grad_result, first_sample + user, first), b.grad_result.dtype, i, count, grad);
    if constexpr (noise) {
      float z[4];
      draw_normals(philox_keys(users.seed[user]), static_cast<uint32_t>(block) + i / 4,
                   static_cast<uint32_t>(block >> 32), users.step[user], Stream::transition, z);
      for (int j = 0; j < 4; ++j) sum[j] = Lanes::fma(grad[j], static_cast<T>(z[j]), sum[j]);
    } else {
      for (int j = 0; j < 4; ++j) sum[j] = Lanes::fma(users.weight[user], grad[j], sum[j]);
    }
  });
}

template <class T>
GMM_INLINE void write_entry(const Table& table, int64_t entry, int64_t first, uint32_t i, uint32_t count,
                            const T (&sum)[4]) {
  constexpr int32_t dtype = sizeof(T) == 8 ? GMM_FLOAT64 : GMM_FLOAT32;
  if (i < count) store_four(advance(table.data, entry * table.elements + first, dtype), dtype, i, count, sum);
}

}  // namespace gmmkernel
