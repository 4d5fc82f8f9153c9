// The bodies of the kernels of training: noise added to samples, the loss, and its gradients. One thread gathers what
// the tile's sample needs; after a barrier every thread goes over elements of the tile, four at a time: a Philox block.
#pragma once

#include "cuda/draws.h"
#include "cuda/operands.h"
#include "cuda/sums_body.h"
#include "gmmkernel/training.h"

namespace gmmkernel {

enum class TrainingKind : uint32_t {
  nothing,  // the grid has more blocks than the batch has samples
  invalid,  // the sample's row or step is out of range, or the row reads a training sample that is not there
  valid,
};

// What training needs of one sample; pointers lead to the tile's first element and are nullptr for what is absent.
template <class T>
struct alignas(16) TrainingTile {
  PhiloxKeys keys;
  uint64_t element;                // of the noise, the tile's first
  uint32_t block_low, block_high;  // its Philox block
  uint32_t step;
  TrainingKind kind;
  TrainingRow<T> row;
  const void *input, *x;  // the data, or the model's output and x_t
  void *result, *other;   // x_t and its noise, or the residual, or the gradients of output and x_t
  T of_result, of_other;  // what gradients are the residual times
  uint32_t count;         // elements of the tile
};

// The row of a sample, or nullptr where it or the step is out of range.
template <class T>
GMM_INLINE const TrainingRow<T>* training_row(const gmm_training& t, int64_t sample) {
  const int64_t row = index_at(t.row, sample);
  if (row < 0 || row >= t.coefficient_rows || !is_step(index_at(t.step, sample))) return nullptr;
  return static_cast<const TrainingRow<T>*>(t.coefficients) + row;
}

// The same where the row reads a training sample that is not there.
template <class T>
GMM_INLINE const TrainingRow<T>* loss_row(const gmm_skip_loss_arguments& a, int64_t sample) {
  const TrainingRow<T>* row = training_row<T>(a.training, sample);
  return row != nullptr && row->reads_sample() && a.sample.data == nullptr ? nullptr : row;
}

// ---- the first thread ----

template <class T>
GMM_INLINE void gather_training(const gmm_training& t, const TrainingRow<T>* row, const Tiling& tiling,
                                const Place& place, TrainingTile<T>& tile, int64_t shard = 0) {
  const int64_t sample = place.sample();
  if (shard < 0) row = nullptr;
  tile.kind = row == nullptr ? TrainingKind::invalid : TrainingKind::valid;
  if (row != nullptr) {
    tile.row = *row;
    tile.keys = philox_keys(static_cast<uint64_t>(t.seeds[sample]));
    tile.step = static_cast<uint32_t>(index_at(t.step, sample));
  }
  tile.element = static_cast<uint64_t>(shard) + static_cast<uint64_t>(place.first(tiling));
  const uint64_t block = tile.element / 4;
  tile.block_low = static_cast<uint32_t>(block);
  tile.block_high = static_cast<uint32_t>(block >> 32);
  tile.count = place.count(tiling);
}

template <int32_t dtype, class T>
GMM_INLINE void gather(const gmm_add_noise_arguments& a, const Tiling& tiling, const Place& place,
                       TrainingTile<T>& tile) {
  const int64_t sample = place.sample(), first = place.first(tiling);
  tile.kind = TrainingKind::nothing;
  if (sample >= a.training.batch) return;
  const int64_t shard = index_at(a.first_element, sample);
  gather_training(a.training, training_row<T>(a.training, sample), tiling, place, tile, shard);
  tile.input = sample_at<dtype>(a.sample, sample, first);
  tile.result = sample_at<dtype>(a.result, sample, first);
  tile.other = present_at<dtype>(a.noise, sample, first);
}

template <int32_t dtype, class T>
GMM_INLINE void gather(const gmm_skip_loss_arguments& a, const Tiling& tiling, const Place& place,
                       TrainingTile<T>& tile) {
  const int64_t sample = place.sample(), first = place.first(tiling);
  tile.kind = TrainingKind::nothing;
  if (sample >= a.training.batch) return;
  gather_training(a.training, loss_row<T>(a, sample), tiling, place, tile);
  tile.input = sample_at<dtype>(a.model_output, sample, first);
  tile.x = present_at<dtype>(a.sample, sample, first);
  tile.result = present_at<dtype>(a.residual, sample, first);
}

template <int32_t dtype, class T>
GMM_INLINE void gather(const gmm_skip_loss_backward_arguments& b, const Tiling& tiling, const Place& place,
                       TrainingTile<T>& tile) {
  const int64_t sample = place.sample(), first = place.first(tiling);
  gather<dtype>(b.of, tiling, place, tile);
  if (tile.kind == TrainingKind::nothing) return;
  tile.result = present_at<dtype>(b.grad_model_output, sample, first);
  tile.other = present_at<dtype>(b.grad_sample, sample, first);
  if (tile.kind == TrainingKind::invalid) return;
  const T scale = residual_scale(static_cast<const T*>(b.grad_loss)[sample], b.of.training.elements);
  tile.of_result = scale * tile.row.eps_output;
  tile.of_other = scale * tile.row.eps_sample;
}

// ---- then every thread: four elements of a tensor, of a type known when compiling and aligned, or of any ----

template <int32_t dtype, class T>
GMM_INLINE void load_numbers(const void* data, int32_t any, uint32_t i, uint32_t count, T (&values)[4]) {
  if constexpr (dtype == any_dtype) {
    load_four(data, any, i, count, values);
  } else if constexpr (dtype == GMM_FLOAT32) {
    Format<dtype>::unpack(load128<dtype>(data, i), values);
  } else {
    const Bits64 bits = read_bits<Bits64>(static_cast<const uint16_t*>(data) + i);
    for (int j = 0; j < 4; ++j)
      values[j] = Format<dtype>::widen(static_cast<uint16_t>(bits.word[j / 2] >> 16 * (j % 2)));
  }
}

template <int32_t dtype, class T>
GMM_INLINE void store_numbers(void* data, int32_t any, uint32_t i, uint32_t count, const T (&values)[4]) {
  if constexpr (dtype == any_dtype) {
    store_some(data, any, i, count, values);
  } else if constexpr (dtype == GMM_FLOAT32) {
    store128<dtype>(data, i, Format<dtype>::pack(values));
  } else {
    const Bits64 bits = {{Format<dtype>::pair(values[0], values[1]), Format<dtype>::pair(values[2], values[3])}};
    write_bits(static_cast<uint16_t*>(data) + i, bits);
  }
}

template <int32_t dtype, class T>
GMM_INLINE void fill_with_nan(void* data, int32_t any, uint32_t count, uint32_t thread) {
  if (data == nullptr) return;
  const T nan = static_cast<T>(bits_float(0x7FC00000));
  const T values[4] = {nan, nan, nan, nan};
  for (uint32_t i = 4 * thread; i < count; i += 4 * block_threads) store_numbers<dtype>(data, any, i, count, values);
}

template <class T>
GMM_INLINE void draw_numbers(const TrainingTile<T>& tile, const PhiloxKeys& keys, uint32_t i, Stream stream,
                             T* values) {
  float z[4];
  draw_normals(keys, tile.block_low + i / 4, tile.block_high, tile.step, stream, z);
  for (int j = 0; j < 4; ++j) values[j] = z[j];
}

// ---- x_t ----

template <int32_t dtype>
constexpr uint32_t elements_of_128_bits = Format<dtype>::count;
template <>
constexpr uint32_t elements_of_128_bits<any_dtype> = 4;

template <int32_t dtype, class T>
GMM_INLINE void add_training_noise(const gmm_add_noise_arguments& a, const TrainingTile<T>& tile, uint32_t thread) {
  using Lanes = typename LanesOf<T>::type;
  if (tile.kind == TrainingKind::nothing) return;
  const uint32_t count = tile.count;
  if (tile.kind == TrainingKind::invalid) {
    fill_with_nan<dtype, T>(tile.result, a.result.dtype, count, thread);
    fill_with_nan<dtype, T>(tile.other, a.noise.dtype, count, thread);
    return;
  }
  const TrainingRow<T> row = tile.row;
  const PhiloxKeys keys = tile.keys;
  constexpr uint32_t n = elements_of_128_bits<dtype>;
  for (uint32_t i = n * thread; i < count; i += n * block_threads) {
    T x[n], noise[n];
    if constexpr (dtype == any_dtype) {
      float z[4];
      draw_normals_from(keys, tile.element + i, tile.step, Stream::training, z);
      for (uint32_t j = 0; j < 4; ++j) noise[j] = z[j];
      load_four(tile.input, a.sample.dtype, i, count, x);
    } else {
      for (uint32_t j = 0; j < n; j += 4) draw_numbers(tile, keys, i + j, Stream::training, noise + j);
      Format<dtype>::unpack(load128<dtype>(tile.input, i), x);
    }
    for (uint32_t j = 0; j < n; ++j) x[j] = noised<Lanes>(row, x[j], noise[j]);
    if constexpr (dtype == any_dtype) {
      store_four(tile.result, a.result.dtype, i, count, x);
      if (tile.other != nullptr) store_four(tile.other, a.noise.dtype, i, count, noise);
    } else {
      store128<dtype>(tile.result, i, Format<dtype>::pack(x));
      if (tile.other != nullptr) store128<dtype>(tile.other, i, Format<dtype>::pack(noise));
    }
  }
}

// ---- the loss ----

// How far four elements are off their targets.
template <class T>
struct FourResiduals {
  T own[4], skip[4];
};

template <int32_t dtype, class T>
GMM_INLINE FourResiduals<T> find_residuals(const gmm_skip_loss_arguments& a, const TrainingTile<T>& tile,
                                           const TrainingRow<T>& row, const PhiloxKeys& keys, uint32_t i) {
  using Lanes = typename LanesOf<T>::type;
  FourResiduals<T> r;
  T epsilon[4], other[4];
  load_numbers<dtype>(tile.input, a.model_output.dtype, i, tile.count, epsilon);
  for (int j = 0; j < 4; ++j) epsilon[j] = noise_of_output<Lanes>(row, epsilon[j]);
  if (row.reads_sample()) {
    load_numbers<dtype>(tile.x, a.sample.dtype, i, tile.count, other);
    for (int j = 0; j < 4; ++j) epsilon[j] = add_noise_of_sample<Lanes>(row, other[j], epsilon[j]);
  }
  draw_numbers(tile, keys, i, Stream::training, other);
  for (int j = 0; j < 4; ++j) {
    r.own[j] = Lanes::sub(other[j], epsilon[j]);
    r.skip[j] = 0;
  }
  if (!row.skips()) return r;
  for (int j = 0; j < 4; ++j) r.skip[j] = skip_target<Lanes>(row, other[j]);
  if (row.draws_fresh()) {
    draw_numbers(tile, keys, i, Stream::training_skip, other);
    for (int j = 0; j < 4; ++j) r.skip[j] = add_fresh_noise<Lanes>(row, other[j], r.skip[j]);
  }
  for (int j = 0; j < 4; ++j) r.skip[j] = skip_residual<Lanes>(row, r.skip[j], epsilon[j]);
  return r;
}

template <class T>
GMM_INLINE void find_weighted_residual(const TrainingRow<T>& row, const FourResiduals<T>& r, T (&residual)[4]) {
  using Lanes = typename LanesOf<T>::type;
  for (int j = 0; j < 4; ++j) {
    residual[j] = weighted_own<Lanes>(row, r.own[j]);
    if (row.skips()) residual[j] = add_weighted_skip<Lanes>(row, r.skip[j], residual[j]);
  }
}

// A block sums four tiles of a sample, 64 threads each; a thread has four times four neighbours, a quarter tile apart.
constexpr uint32_t loss_tiles = 4, tile_threads = block_threads / loss_tiles;
static_assert(sum_tile == 4 * 4 * tile_threads, "each thread has sixteen elements");

// What is left of each tile's four classes of elements modulo 4, when their highest bits are summed over.
template <class T>
struct LossSums {
  T of_threads[4 * loss_tiles][tile_threads + 16];  // so that two rows of 16 threads' reads meet in no bank
  T sixteenths[4 * loss_tiles][16 + 1];
  T classes[4 * loss_tiles];
};

template <int32_t dtype, class T>
GMM_INLINE void sum_loss_of_threads(const gmm_skip_loss_arguments& a, const TrainingTile<T>& tile, uint32_t thread,
                                    LossSums<T>& sums) {
  using Lanes = typename LanesOf<T>::type;
  const TrainingRow<T> row = tile.row;
  const PhiloxKeys keys = tile.keys;
  const uint32_t of_tile = thread / tile_threads, lane = thread % tile_threads;
  const uint32_t first = of_tile * sum_tile + 4 * lane;
  T total[4] = {0, 0, 0, 0}, pair[4] = {0, 0, 0, 0};
  GMM_NO_UNROLL
  for (uint32_t n = 0; n < 4; ++n) {  // the quarters 0, 2, 1, 3: a half apart first
    const uint32_t quarter = (n >> 1) + ((n & 1) << 1), i = first + quarter * (sum_tile / 4);
    T term[4] = {0, 0, 0, 0};
    if (i < tile.count) {
      const FourResiduals<T> r = find_residuals<dtype>(a, tile, row, keys, i);
      for (int j = 0; j < 4; ++j) {
        T value = own_term<Lanes>(row, r.own[j]);
        if (row.skips()) value = add_skip_term<Lanes>(row, r.skip[j], value);
        if (dtype != any_dtype || i + j < tile.count) term[j] = value;
      }
      if (dtype == any_dtype || dtype == GMM_FLOAT32) {  // a residual has the type of the arithmetic
        T residual[4];
        find_weighted_residual(row, r, residual);
        if (tile.result != nullptr) store_numbers<dtype>(tile.result, a.residual.dtype, i, tile.count, residual);
      }
    }
    for (int j = 0; j < 4; ++j) {
      pair[j] = (n & 1) == 0 ? term[j] : Lanes::add(pair[j], term[j]);
      if ((n & 1) != 0) total[j] = n == 1 ? pair[j] : Lanes::add(total[j], pair[j]);
    }
  }
  for (uint32_t j = 0; j < 4; ++j) sums.of_threads[4 * of_tile + j][lane] = total[j];
}

template <class T>
GMM_INLINE void sum_loss_to_sixteenths(uint32_t thread, LossSums<T>& sums) {
  const uint32_t row = thread / 16, i = thread % 16;
  sums.sixteenths[row][i] = sum_four([&](int high) { return sums.of_threads[row][16 * high + i]; });
}

template <class T>
GMM_INLINE void sum_loss_to_classes(uint32_t thread, LossSums<T>& sums) {
  if (thread >= 4 * loss_tiles) return;
  sums.classes[thread] = sum_sixteen([&](int i) { return sums.sixteenths[thread][i]; });
}

template <class T>
GMM_INLINE void write_loss_sums(const SumRows& rows, const Place& place, const LossSums<T>& sums) {
  const int64_t tile = static_cast<int64_t>(place.tile) * loss_tiles + place.thread;
  if (place.thread >= loss_tiles || tile >= rows.tiles) return;
  sums_of<T>(rows, place.sample())[tile] = sum_four([&](int j) { return sums.classes[4 * place.thread + j]; });
}

// From a sample's sum to its loss.
template <class T>
GMM_INLINE void finish_loss(const gmm_skip_loss_arguments& a, const SumRows& rows, int64_t sample) {
  if (sample >= rows.batch) return;
  T loss = static_cast<T>(bits_float(0x7FC00000));
  if (rows.tiles > 0 && loss_row<T>(a, sample) != nullptr) {
    loss = *sums_of<T>(rows, sample) / static_cast<T>(a.training.elements);
  }
  static_cast<T*>(a.loss)[sample] = loss;
}

// ---- its gradients ----

// The gradient of the model's output from the residual, in its place.
template <class T>
GMM_INLINE void scale_residual(const gmm_scale_residual_arguments& a, const Tiling& tiling, const Place& place) {
  const int64_t sample = place.sample();
  if (sample >= a.training.batch) return;
  const TrainingRow<T>* row = training_row<T>(a.training, sample);
  T scale = static_cast<T>(bits_float(0x7FC00000));
  if (row != nullptr) {
    scale = residual_scale(static_cast<const T*>(a.grad_loss)[sample], a.training.elements) * row->eps_output;
  }
  void* residual = sample_at<any_dtype>(a.residual, sample, place.first(tiling));
  const uint32_t count = place.count(tiling);
  for (uint32_t i = 4 * place.thread; i < count; i += 4 * block_threads) {
    T values[4];
    load_four(residual, a.residual.dtype, i, count, values);
    for (int j = 0; j < 4; ++j) values[j] = LanesOf<T>::type::mul(scale, values[j]);
    store_four(residual, a.residual.dtype, i, count, values);
  }
}

template <int32_t dtype, class T>
GMM_INLINE void skip_loss_backward(const gmm_skip_loss_backward_arguments& b, const TrainingTile<T>& tile,
                                   uint32_t thread) {
  using Lanes = typename LanesOf<T>::type;
  if (tile.kind == TrainingKind::nothing) return;
  const uint32_t count = tile.count;
  if (tile.kind == TrainingKind::invalid) {
    fill_with_nan<dtype, T>(tile.result, b.grad_model_output.dtype, count, thread);
    fill_with_nan<dtype, T>(tile.other, b.grad_sample.dtype, count, thread);
    return;
  }
  const TrainingRow<T> row = tile.row;
  const PhiloxKeys keys = tile.keys;
  for (uint32_t i = 4 * thread; i < count; i += 4 * block_threads) {
    T residual[4], value[4];
    find_weighted_residual(row, find_residuals<dtype>(b.of, tile, row, keys, i), residual);
    if (tile.result != nullptr) {
      for (int j = 0; j < 4; ++j) value[j] = Lanes::mul(tile.of_result, residual[j]);
      store_numbers<dtype>(tile.result, b.grad_model_output.dtype, i, count, value);
    }
    if (tile.other != nullptr) {
      for (int j = 0; j < 4; ++j) value[j] = row.reads_sample() ? Lanes::mul(tile.of_other, residual[j]) : T(0);
      store_numbers<dtype>(tile.other, b.grad_sample.dtype, i, count, value);
    }
  }
}

}  // namespace gmmkernel
