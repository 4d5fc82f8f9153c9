// The step kernels' bodies, as functions of a place in the grid: a GPU runs them for all threads at once, the tests on
// the host one after another. One warp gathers what the tile's sample needs in `StepTile` (shared memory); after a
// barrier every thread goes over elements of the tile.
#pragma once

#include "cuda/draws.h"
#include "cuda/operands.h"
#include "cuda/sums_body.h"
#include "gmmkernel/density.h"

namespace gmmkernel {

// What is asked of every vector of a tile, where it is the same for all of them.
enum class TileKind : uint32_t {
  nothing,   // the grid has more blocks than the batch has samples
  invalid,   // the sample's row, step or first element is out of range
  mixture,   // offset, noise with a std from the table
  shifted,   // offset, noise with the row's sigma: behind the elements whose variance VUB reduces
  gaussian,  // no offset, noise with the row's sigma
  mixed,     // anything else
};

// What a step needs of one sample; pointers lead to the tile's first element.
template <class T>
struct alignas(16) StepTile {
  PhiloxKeys keys;                 // in shared memory, lest the compiler work them out again for every element
  uint64_t element;                // of the noise, the tile's first
  uint32_t block_low, block_high;  // its Philox block
  uint32_t step;
  TileKind kind;
  Row<T> row;
  const void* x;
  const void* output;
  void* result;
  const T* offset;  // nullptr: no mixture, or switched off by the row
  const T* std;
  const void* uncond;
  int64_t sample, first;  // the tile's sample, and its first element of it
  uint32_t count;         // elements of the tile
  uint32_t std_count;     // of these, from the first, how many have a std in the table
  bool noise, plain_bounds;
};

// ---- the first warp ----

template <class T>
GMM_INLINE bool is_plain_bound(T bound) {
  return bound < 0 || bound > 0;
}

template <int32_t dtype, class T>
GMM_INLINE void gather(const gmm_step_arguments& a, const Tiling& tiling, const Place& place, StepTile<T>& tile) {
  const uint32_t lane = place.thread;
  const int64_t sample = place.sample();
  if (sample >= a.batch) {
    tile.kind = TileKind::nothing;
    return;
  }
  const int64_t first = place.first(tiling);
  const uint32_t count = place.count(tiling);
  const int64_t row_index = index_at(a.row, sample), step = index_at(a.step, sample);
  const int64_t shard = index_at(a.first_element, sample);
  const bool valid = row_index >= 0 && row_index < a.coefficient_rows && is_step(step) && shard >= 0;
  const uint64_t element = static_cast<uint64_t>(shard) + static_cast<uint64_t>(first), block = element / 4;
  // Otherwise elements draw from two blocks, or the blocks' numbers carry into their upper word.
  const bool plain_blocks = element % 4 == 0 && static_cast<uint32_t>(block) <= 0xFFFFFFFF - count / 4;
  const gmm_mixture& m = a.mixture;
  const uint32_t components = static_cast<uint32_t>(m.components);  // at most 1024
  int64_t component = valid ? 0 : -1;
  TileKind kind = TileKind::invalid;
  if (valid) {
    const PhiloxKeys keys = philox_keys(static_cast<uint64_t>(a.seeds[sample]));
    const T* columns = static_cast<const T*>(a.coefficients) + row_index * row_columns;
    for (uint32_t c = lane; c < row_columns; c += gathering_lanes) reinterpret_cast<T*>(&tile.row)[c] = columns[c];
    const Row<T>& row = *reinterpret_cast<const Row<T>*>(columns);
    if (components > 1) component = draw_component(m, row_index, keys, static_cast<uint32_t>(step), lane);
    if (lane == 0) {
      const bool shifted = components > 0 && row.offset != 0;
      const bool noise = (components > 0 && m.std_elements > 0) || row.sigma != 0;
      const bool plain_bounds = is_plain_bound(row.clip_min) && is_plain_bound(row.clip_max);
      uint32_t std_count = 0;
      tile.offset = nullptr;
      tile.std = nullptr;
      if (components > 0) {
        const int64_t std_row = table_row(m.std_rows, row_index) * static_cast<uint32_t>(m.std_components) +
                                (m.std_components == 1 ? 0 : component);
        const int64_t left = m.std_elements - first;
        std_count = left <= 0 ? 0 : left < count ? static_cast<uint32_t>(left) : count;
        tile.std = static_cast<const T*>(m.std) + std_row * m.std_elements + first;
      }
      if (shifted) {
        const int64_t offset_row = table_row(m.offset_rows, row_index) * components + component;
        tile.offset = static_cast<const T*>(m.offsets) + offset_row * a.elements + first;
      }
      kind = TileKind::mixed;
      if (noise && plain_bounds && plain_blocks) {
        if (shifted && std_count == count) kind = TileKind::mixture;
        if (std_count == 0) kind = shifted ? TileKind::shifted : TileKind::gaussian;
      }
      tile.keys = keys;
      tile.std_count = std_count;
      tile.noise = noise;
      tile.plain_bounds = plain_bounds;
    }
  }
  if (lane != 0) return;
  tile.element = element;
  tile.block_low = static_cast<uint32_t>(block);
  tile.block_high = static_cast<uint32_t>(block >> 32);
  tile.step = static_cast<uint32_t>(step);
  tile.kind = kind;
  tile.sample = sample;
  tile.first = first;
  tile.count = count;
  tile.x = sample_at<dtype>(a.sample, sample, first);
  tile.output = sample_at<dtype>(a.model_output, sample, first);
  tile.uncond =
      a.model_output_uncond.data == nullptr ? nullptr : sample_at<dtype>(a.model_output_uncond, sample, first);
  tile.result = sample_at<dtype>(a.result, sample, first);
  if (a.components != nullptr && place.tile == 0) a.components[sample] = component;
}

// ---- then every thread ----

// n entries of a row of offsets or std.
template <int n>
GMM_INLINE void load_table(const float* row, uint32_t i, float* values) {
  for (int j = 0; j < n; j += 4) Format<GMM_FLOAT32>::unpack(load128<GMM_FLOAT32>(row, i + j), values + j);
}

// ---- the common steps: one type, everything aligned to 16 bytes, no history, no prediction ----

// What a vector of the result is made of.
struct VectorInputs {
  Bits128 x, output, uncond;  // the last where there is a guidance pair
};

template <int32_t dtype, bool guided>
GMM_INLINE VectorInputs load_inputs(const void* x, const void* output, const void* uncond, uint32_t i) {
  VectorInputs inputs = {load128<dtype>(x, i), load128<dtype>(output, i), {}};
  if constexpr (guided) inputs.uncond = load128<dtype>(uncond, i);
  return inputs;
}

template <int32_t dtype, bool guided>
GMM_INLINE void predict_vector(const Row<float>& row, bool plain_bounds, const VectorInputs& inputs, float* y) {
  constexpr int n = Format<dtype>::count;
  float x[n], o[n];
  Format<dtype>::unpack(inputs.x, x);
  Format<dtype>::unpack(inputs.output, o);
  if constexpr (guided) {
    float u[n];
    Format<dtype>::unpack(inputs.uncond, u);
    for (int j = 0; j < n; ++j) o[j] = guide<CudaLanes>(row, u[j], o[j]);
  }
  if (plain_bounds) {
    for (int j = 0; j < n; ++j) y[j] = predict_x0<CudaLanes>(row, x[j], o[j]);
  } else {
    for (int j = 0; j < n; ++j) y[j] = predict_x0<ScalarLanes>(row, x[j], o[j]);
  }
  for (int j = 0; j < n; ++j) y[j] = predict_mean<CudaLanes>(row, x[j], o[j], y[j]);
}

// y += std * noise for the vector whose noise begins with the given block.
template <int n>
GMM_INLINE void add_noise(const PhiloxKeys& keys, uint32_t block_low, uint32_t block_high, uint32_t step,
                          const float* std, float* y) {
  for (int j = 0; j < n; j += 4) {
    float z[4];
    draw_normals(keys, block_low + j / 4, block_high, step, Stream::transition, z);
    for (int e = 0; e < 4; ++e) y[j + e] = CudaLanes::fma(std[j + e], z[e], y[j + e]);
  }
}

// All vectors of a tile of kind `mixture`, `shifted` or `gaussian`.
template <int32_t dtype, bool guided, bool shifted, bool table>
GMM_INLINE void step_same_vectors(const StepTile<float>& tile, uint32_t thread) {
  constexpr uint32_t n = Format<dtype>::count, stride = n * block_threads;
  constexpr int unroll = (guided ? 8 : 16) / n;
  const Row<float> row = tile.row;
  const PhiloxKeys keys = tile.keys;
  const uint32_t block_high = tile.block_high, step = tile.step, i = n * thread;
  uint32_t block = tile.block_low + i / 4;
  int32_t left = static_cast<int32_t>(tile.count - i);
  using Storage = typename Format<dtype>::storage;
  const Storage* x = static_cast<const Storage*>(tile.x) + i;
  const Storage* output = static_cast<const Storage*>(tile.output) + i;
  const Storage* uncond = guided ? static_cast<const Storage*>(tile.uncond) + i : nullptr;
  Storage* result = static_cast<Storage*>(tile.result) + i;
  const float* offset = shifted ? tile.offset + i : nullptr;
  const float* std = table ? tile.std + i : nullptr;

  const auto one = [&](uint32_t ahead) {
    float y[n], other[n];
    predict_vector<dtype, guided>(row, true, load_inputs<dtype, guided>(x, output, uncond, ahead), y);
    if constexpr (shifted) {
      load_table<n>(offset, ahead, other);
      for (uint32_t j = 0; j < n; ++j) y[j] = CudaLanes::fma(row.offset, other[j], y[j]);
    }
    if constexpr (table) {
      load_table<n>(std, ahead, other);
    } else {
      for (uint32_t j = 0; j < n; ++j) other[j] = row.sigma;
    }
    add_noise<n>(keys, block + ahead / 4, block_high, step, other, y);
    store128<dtype>(result, ahead, Format<dtype>::pack(y));
  };
  const auto go_on = [&](uint32_t by) {
    left -= by;
    block += by / 4;
    x += by;
    output += by;
    if constexpr (guided) uncond += by;
    result += by;
    if constexpr (shifted) offset += by;
    if constexpr (table) std += by;
  };
  if constexpr (unroll > 1) {
    for (; left > static_cast<int32_t>((unroll - 1) * stride); go_on(unroll * stride)) {
      GMM_UNROLL(4)
      for (int u = 0; u < unroll; ++u) one(u * stride);
    }
  }
  for (; left > 0; go_on(stride)) one(0);
}

// All vectors of a tile of kind `mixed`.
template <int32_t dtype, bool guided>
GMM_INLINE void step_mixed_vectors(const StepTile<float>& tile, uint32_t thread) {
  constexpr uint32_t n = Format<dtype>::count;
  for (uint32_t i = n * thread; i < tile.count; i += n * block_threads) {
    float y[n], other[n];
    const VectorInputs inputs = load_inputs<dtype, guided>(tile.x, tile.output, tile.uncond, i);
    predict_vector<dtype, guided>(tile.row, tile.plain_bounds, inputs, y);
    if (tile.offset != nullptr) {
      load_table<n>(tile.offset, i, other);
      for (uint32_t j = 0; j < n; ++j) y[j] = CudaLanes::fma(tile.row.offset, other[j], y[j]);
    }
    for (uint32_t j = 0; tile.noise && j < n; j += 4) {
      const uint32_t at = i + j;
      float z[4];
      draw_normals_from(tile.keys, tile.element + at, tile.step, Stream::transition, z);
      for (uint32_t e = 0; e < 4; ++e) {
        const float std = at + e < tile.std_count ? global(tile.std)[at + e] : tile.row.sigma;
        y[j + e] = CudaLanes::fma(std, z[e], y[j + e]);
      }
    }
    store128<dtype>(tile.result, i, Format<dtype>::pack(y));
  }
}

// ---- any step: each operand's type and alignment are looked at as it is read ----

template <class T>
GMM_INLINE void* prediction_at(const gmm_step_arguments& a, const StepTile<T>& tile) {
  return advance(a.prediction.data, tile.sample * a.prediction.batch_stride + tile.first, a.prediction.dtype);
}

// A number as a tensor of the type holds it.
template <class T>
GMM_INLINE T rounded(T value, int32_t dtype) {
  if constexpr (sizeof(T) == 4) {
    if (dtype == GMM_BFLOAT16) {
      return bfloat16_to_float(static_cast<uint16_t>(Format<GMM_BFLOAT16>::pair(value, 0)));
    }
    if (dtype == GMM_FLOAT16) {
      return Format<GMM_FLOAT16>::widen(static_cast<uint16_t>(Format<GMM_FLOAT16>::pair(value, 0)));
    }
  }
  return value;
}

// What is left of the mean of a step's distribution is returned in `distance` where it is wanted: the result, as it was
// rounded, less the mean.
template <bool scored, class T>
GMM_INLINE void step_four(const gmm_step_arguments& a, const StepTile<T>& tile, uint32_t i, T (&distance)[4]) {
  using Lanes = typename LanesOf<T>::type;
  constexpr int32_t table_dtype = sizeof(T) == 8 ? GMM_FLOAT64 : GMM_FLOAT32;
  const Row<T>& row = tile.row;
  T x[4], o[4], x0[4], y[4], other[4];
  load_four(tile.x, a.sample.dtype, i, tile.count, x);
  load_four(tile.output, a.model_output.dtype, i, tile.count, o);
  if (tile.uncond != nullptr) {
    load_four(tile.uncond, a.model_output_uncond.dtype, i, tile.count, other);
    for (int j = 0; j < 4; ++j) o[j] = guide<Lanes>(row, other[j], o[j]);
  }
  for (int j = 0; j < 4; ++j) {
    x0[j] = predict_x0<Lanes>(row, x[j], o[j]);
    y[j] = predict_mean<Lanes>(row, x[j], o[j], x0[j]);
  }
  GMM_UNROLL(4)
  for (int h = 0; h < GMM_MAX_HISTORY; ++h) {
    const gmm_input& stored = a.history[h];
    if (stored.data == nullptr || row.history[h] == 0) continue;
    load_four(advance(stored.data, tile.sample * stored.batch_stride + tile.first, stored.dtype), stored.dtype, i,
              tile.count, other);
    for (int j = 0; j < 4; ++j) y[j] = Lanes::fma(row.history[h], other[j], y[j]);
  }
  T mean[4];
  for (int j = 0; j < 4; ++j) mean[j] = y[j];
  if (tile.offset != nullptr) {
    load_four(tile.offset, table_dtype, i, tile.count, other);
    for (int j = 0; j < 4; ++j) y[j] = Lanes::fma(row.offset, other[j], y[j]);
  }
  if (a.prediction_kind != GMM_PREDICTION_NONE) {
    if (a.prediction_kind == GMM_PREDICTION_EPSILON) {
      for (int j = 0; j < 4; ++j) x0[j] = predict_epsilon<Lanes>(row, x[j], o[j]);
    } else if (a.prediction_kind == GMM_PREDICTION_MODEL_OUTPUT) {
      for (int j = 0; j < 4; ++j) x0[j] = o[j];
    } else if (a.prediction_kind == GMM_PREDICTION_MEAN) {
      for (int j = 0; j < 4; ++j) x0[j] = mean[j];
    }
    store_four(prediction_at(a, tile), a.prediction.dtype, i, tile.count, x0);
  }
  if (tile.noise) {
    float z[4];
    draw_normals_from(tile.keys, tile.element + i, tile.step, Stream::transition, z);
    load_four(tile.std, table_dtype, i, tile.std_count, other);
    for (int j = 0; j < 4; ++j) y[j] = Lanes::fma(i + j < tile.std_count ? other[j] : row.sigma, T(z[j]), y[j]);
  }
  store_four(tile.result, a.result.dtype, i, tile.count, y);
  if constexpr (scored) {
    for (int j = 0; j < 4; ++j) distance[j] = Lanes::sub(rounded(y[j], a.result.dtype), mean[j]);
  }
}

// ---- a whole tile ----

template <class T>
GMM_INLINE void fill_with_nan(const gmm_step_arguments& a, const StepTile<T>& tile, uint32_t thread) {
  const T nan = static_cast<T>(bits_float(0x7FC00000));
  const T values[4] = {nan, nan, nan, nan};
  for (uint32_t i = 4 * thread; i < tile.count; i += 4 * block_threads) {
    store_four(tile.result, a.result.dtype, i, tile.count, values);
    if (a.prediction_kind == GMM_PREDICTION_NONE) continue;
    store_four(prediction_at(a, tile), a.prediction.dtype, i, tile.count, values);
  }
}

template <int32_t dtype, bool guided>
GMM_INLINE void step_common(const gmm_step_arguments& a, const StepTile<float>& tile, uint32_t thread) {
  switch (tile.kind) {
    case TileKind::mixture:
      step_same_vectors<dtype, guided, true, true>(tile, thread);
      break;
    case TileKind::shifted:
      step_same_vectors<dtype, guided, true, false>(tile, thread);
      break;
    case TileKind::gaussian:
      step_same_vectors<dtype, guided, false, false>(tile, thread);
      break;
    case TileKind::mixed:
      step_mixed_vectors<dtype, guided>(tile, thread);
      break;
    case TileKind::invalid:
      fill_with_nan(a, tile, thread);
      break;
    case TileKind::nothing:
      break;
  }
}

template <class T>
GMM_INLINE void step_any(const gmm_step_arguments& a, const StepTile<T>& tile, uint32_t thread) {
  if (tile.kind == TileKind::nothing) return;
  if (tile.kind == TileKind::invalid) {
    fill_with_nan(a, tile, thread);
    return;
  }
  T nothing[4];
  for (uint32_t i = 4 * thread; i < tile.count; i += 4 * block_threads) step_four<false>(a, tile, i, nothing);
}

// ---- a tile of 1024 with the sum that the log-density of its result is made of, in four steps with a barrier after
// each

template <class T>
struct DensitySum {
  T terms[sum_tile], quarters[block_threads], sixteenths[16];
};

template <class T>
GMM_INLINE void step_scored(const gmm_step_arguments& a, const StepTile<T>& tile, uint32_t thread, DensitySum<T>& sum) {
  using Lanes = typename LanesOf<T>::type;
  const uint32_t i = 4 * thread;
  const bool valid = tile.kind != TileKind::invalid;
  T distance[4] = {};
  T inverse = 0, log_std = 0;
  if (!valid) {
    fill_with_nan(a, tile, thread);
  } else if (i < tile.count) {
    step_four<true>(a, tile, i, distance);
    inverse = Lanes::div(T(1), tile.row.sigma);
    log_std = logarithm<Lanes>(tile.row.sigma);
  }
  for (uint32_t j = 0; j < 4; ++j) {
    T term = 0;
    if (i + j < tile.count) term = base_term<Lanes>(Lanes::mul(distance[j], inverse), log_std);
    sum.terms[i + j] = valid ? term : static_cast<T>(bits_float(0x7FC00000));
  }
}

template <class T>
GMM_INLINE void sum_terms(uint32_t thread, DensitySum<T>& sum) {
  sum.quarters[thread] = sum_four([&](int j) { return sum.terms[thread + block_threads * j]; });
}

template <class T>
GMM_INLINE void sum_quarters(uint32_t thread, DensitySum<T>& sum) {
  if (thread < 16) sum.sixteenths[thread] = sum_sixteen([&](int high) { return sum.quarters[16 * high + thread]; });
}

template <class T>
GMM_INLINE void write_sum(const SumRows& rows, const StepTile<T>& tile, uint32_t thread, const DensitySum<T>& sum) {
  if (thread != 0) return;
  sums_of<T>(rows, tile.sample)[tile.first / sum_tile] = sum_sixteen([&](int i) { return sum.sixteenths[i]; });
}

}  // namespace gmmkernel
