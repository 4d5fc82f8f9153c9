// The step kernels' bodies, as functions of a place in the grid: a GPU runs them for all threads at once, the tests on
// the host one after another. One warp gathers what the tile's sample needs in `StepTile` (shared memory); after a
// barrier every thread goes over elements of the tile.
#pragma once

#include "cuda/elements.h"
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

enum class Clip : uint32_t {
  none,   // both bounds are infinite
  plain,  // neither is zero or NaN
  exact,  // where comparisons and max.NaN differ
};

// For rows that clip nothing.
struct FreeLanes : CudaLanes {
  GMM_INLINE real at_least(real value, real) { return value; }
  GMM_INLINE real at_most(real value, real) { return value; }
};

// What a step needs of one sample; pointers lead to the tile's first element.
template <class T>
struct alignas(16) StepTile {
  PhiloxKeys keys;   // in shared memory, lest the compiler work them out again for every element
  uint64_t element;  // of the noise, the tile's first
  uint32_t step;
  TileKind kind;
  Row<T> row;
  const void* x;
  const void* output;
  void* result;
  const T* offset;  // nullptr: no mixture, or switched off by the row
  const T* std;
  const void* uncond;
  const void* history[GMM_MAX_HISTORY];  // nullptr: none, or switched off by the row
  void* prediction;
  int64_t sample, first;  // the tile's sample, and its first element of it
  uint32_t count;         // elements of the tile
  uint32_t std_count;     // of these, from the first, how many have a std in the table
  Clip clip;
  bool noise, has_history;
  bool aligned;  // to 16 bytes, whatever there is
};

// ---- the first warp ----

template <class T>
GMM_INLINE bool is_plain_bound(T bound) {
  return bound < 0 || bound > 0;
}

template <bool more, class T>
GMM_INLINE bool is_aligned_tile(const StepTile<T>& tile) {
  const auto address = [](const void* data) { return reinterpret_cast<uintptr_t>(data); };  // of nothing: 0
  uintptr_t all = address(tile.x) | address(tile.output) | address(tile.result);
  all |= address(tile.offset) | address(tile.std);
  if constexpr (more) {
    all |= address(tile.uncond) | address(tile.prediction);
    for (int h = 0; h < GMM_MAX_HISTORY; ++h) all |= address(tile.history[h]);
  }
  return all % 16 == 0;
}

template <class T>
GMM_INLINE Clip clip_of(const Row<T>& row) {
  if (!clips(row)) return Clip::none;
  return is_plain_bound(row.clip_min) && is_plain_bound(row.clip_max) ? Clip::plain : Clip::exact;
}

// `more`: history, prediction and guidance may be there.
template <bool more, int32_t sample_dtype, int32_t output_dtype, class T>
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
      uint32_t std_count = 0;
      tile.offset = nullptr;
      tile.std = nullptr;
      if (components > 0) {
        const int64_t std_row = table_row(m.std_rows, row_index) * static_cast<uint32_t>(m.std_components) +
                                (m.std_components == 1 ? 0 : component);
        const int64_t left = m.std_elements - first;
        std_count = left <= 0 ? 0 : left < count ? static_cast<uint32_t>(left) : count;
        if (std_count > 0) tile.std = static_cast<const T*>(m.std) + std_row * m.std_elements + first;
      }
      if (shifted) {
        const int64_t offset_row = table_row(m.offset_rows, row_index) * components + component;
        tile.offset = static_cast<const T*>(m.offsets) + offset_row * a.elements + first;
      }
      tile.has_history = false;
      for (int h = 0; more && h < GMM_MAX_HISTORY; ++h) {
        tile.history[h] = row.history[h] == 0 ? nullptr : present_at<sample_dtype>(a.history[h], sample, first);
        tile.has_history = tile.has_history || tile.history[h] != nullptr;
      }
      kind = TileKind::mixed;
      if (noise) {
        if (shifted && std_count == count) kind = TileKind::mixture;
        if (std_count == 0) kind = shifted ? TileKind::shifted : TileKind::gaussian;
      }
      tile.keys = keys;
      tile.std_count = std_count;
      tile.noise = noise;
      tile.clip = clip_of(row);
    }
  }
  if (lane != 0) return;
  tile.element = static_cast<uint64_t>(shard) + static_cast<uint64_t>(first);
  tile.step = static_cast<uint32_t>(step);
  tile.kind = kind;
  tile.sample = sample;
  tile.first = first;
  tile.count = count;
  tile.x = sample_at<sample_dtype>(a.sample, sample, first);
  tile.output = sample_at<output_dtype>(a.model_output, sample, first);
  tile.result = sample_at<sample_dtype>(a.result, sample, first);
  tile.uncond = nullptr;
  tile.prediction = nullptr;
  if constexpr (more) {
    tile.uncond = present_at<output_dtype>(a.model_output_uncond, sample, first);
    if (a.prediction_kind != GMM_PREDICTION_NONE)
      tile.prediction = sample_at<sample_dtype>(a.prediction, sample, first);
  }
  tile.aligned = kind == TileKind::invalid || is_aligned_tile<more>(tile);
  if (a.components != nullptr && place.tile == 0) a.components[sample] = component;
}

// ---- then every thread ----

// ---- the fast steps: one type, neither history nor prediction nor guidance, and the same asked of every vector ----

// n entries of a row of offsets or std.
template <int n>
GMM_INLINE void load_table(const float* row, uint32_t i, float* values) {
  for (int j = 0; j < n; j += 4) Format<GMM_FLOAT32>::unpack(load128<GMM_FLOAT32>(row, i + j), values + j);
}

template <class Lanes, class T, uint32_t n>
GMM_INLINE void add_scaled(T scale, const T (&values)[n], T (&y)[n]) {
  apply<Lanes>([&](auto lanes, auto value, auto sum) { return lanes.fma(lanes.splat(scale), value, sum); }, y, values,
               y);
}

template <class Lanes, class T, uint32_t n>
GMM_INLINE void add_product(const T (&a)[n], const float (&b)[n], T (&y)[n]) {
  apply<Lanes>([&](auto lanes, auto left, auto right, auto sum) { return lanes.fma(left, right, sum); }, y, a, b, y);
}

// The first `end` elements of an aligned tile of kind `mixture`, `shifted` or `gaussian`, a multiple of 8.
template <int32_t dtype, class Lanes, bool shifted, bool table>
GMM_INLINE void step_fast(const StepTile<float>& tile, uint32_t end, uint32_t thread) {
  constexpr uint32_t n = Format<dtype>::count, stride = n * block_threads;
  constexpr int unroll = 16 / n;
  const Row<float> row = tile.row;
  const PhiloxKeys keys = tile.keys;
  const uint32_t block_high = static_cast<uint32_t>(tile.element / 4 >> 32), step = tile.step, i = n * thread;
  uint32_t block = static_cast<uint32_t>(tile.element / 4) + i / 4;
  const uint32_t block_end = static_cast<uint32_t>(tile.element / 4) + end / 4;
  using Storage = typename Format<dtype>::storage;
  const Storage* x = static_cast<const Storage*>(tile.x) + i;
  const Storage* output = static_cast<const Storage*>(tile.output) + i;
  Storage* result = static_cast<Storage*>(tile.result) + i;
  const float* offset = shifted ? tile.offset + i : nullptr;
  const float* std = table ? tile.std + i : nullptr;

  const auto one = [&](uint32_t ahead) {
    float y[n], o[n], other[n], z[n];
    Format<dtype>::unpack(load128<dtype>(x, ahead), y);
    Format<dtype>::unpack(load128<dtype>(output, ahead), o);
    apply<Lanes>(
        [&](auto lanes, auto at, auto from) {
          using Two = decltype(lanes);
          return predict_mean<Two>(row, at, from, predict_x0<Two>(row, at, from));
        },
        y, y, o);
    if constexpr (shifted) {
      load_table<n>(offset, ahead, other);
      add_scaled<Lanes>(row.offset, other, y);
    }
    if constexpr (table) {
      load_table<n>(std, ahead, other);
    } else {
      for (uint32_t j = 0; j < n; ++j) other[j] = row.sigma;
    }
    for (uint32_t j = 0; j < n; j += 4) {
      float four[4];
      draw_normals(keys, block + (ahead + j) / 4, block_high, step, Stream::transition, four);
      for (uint32_t e = 0; e < 4; ++e) z[j + e] = four[e];
    }
    add_product<Lanes>(other, z, y);
    store128<dtype>(result, ahead, Format<dtype>::pack(y));
  };
  const auto go_on = [&](uint32_t by) {
    block += by / 4;
    x += by;
    output += by;
    result += by;
    if constexpr (shifted) offset += by;
    if constexpr (table) std += by;
  };
  const auto left = [&] { return static_cast<int32_t>(block_end - block); };  // blocks
  for (; left() > static_cast<int32_t>((unroll - 1) * stride / 4); go_on(unroll * stride)) {
    GMM_UNROLL(4)
    for (int u = 0; u < unroll; ++u) one(u * stride);
  }
  for (; left() > 0; go_on(stride)) one(0);
}

// ---- any step ----

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

template <class Lanes, class T, uint32_t n>
GMM_INLINE void predict_all(const Row<T>& row, const T (&x)[n], const T (&o)[n], T (&x0)[n]) {
  apply<Lanes>([&](auto lanes, auto at, auto from) { return predict_x0<decltype(lanes)>(row, at, from); }, x0, x, o);
}

// Neighbouring elements of the tile, read and written as `at` says; `more`: history, prediction and guidance may be
// there, and noise where there are eight. What is left of the mean of the step's distribution is returned in `distance`
// where it is wanted: the result, as it was rounded, less the mean.
template <bool scored, bool more, class T, class Elements>
GMM_INLINE void step_elements(const gmm_step_arguments& a, const StepTile<T>& tile, const Elements& at,
                              T (&distance)[Elements::n]) {
  using Lanes = typename LanesOf<T>::type;
  const Row<T>& row = tile.row;
  constexpr uint32_t n = Elements::n;
  T x[n], o[n], x0[n], y[n], other[n];
  const auto x_bits = at.template read<TypeOf::sample>(tile.x, a.sample.dtype);
  const auto o_bits = at.template read<TypeOf::model_output>(tile.output, a.model_output.dtype);
  at.template unpack<TypeOf::sample>(x_bits, x);
  at.template unpack<TypeOf::model_output>(o_bits, o);
  if (more && tile.uncond != nullptr) {
    const auto bits = at.template read<TypeOf::model_output>(tile.uncond, a.model_output_uncond.dtype);
    at.template unpack<TypeOf::model_output>(bits, other);
    apply<Lanes>([&](auto lanes, auto uncond, auto cond) { return guide<decltype(lanes)>(row, uncond, cond); }, o,
                 other, o);
  }
  if (n == 4 || tile.clip == Clip::exact) {  // four are for the few elements that are left, and for any type
    predict_all<Lanes>(row, x, o, x0);
  } else if (tile.clip == Clip::plain) {
    predict_all<CudaLanes>(row, x, o, x0);
  } else {
    predict_all<FreeLanes>(row, x, o, x0);
  }
  apply<Lanes>(
      [&](auto lanes, auto at, auto from, auto of) { return predict_mean<decltype(lanes)>(row, at, from, of); }, y, x,
      o, x0);
  if (more && tile.has_history) {
    GMM_UNROLL(4)
    for (int h = 0; h < GMM_MAX_HISTORY; ++h) {
      if (tile.history[h] == nullptr) continue;
      const auto bits = at.template read<TypeOf::sample>(tile.history[h], a.history[h].dtype);
      at.template unpack<TypeOf::sample>(bits, other);
      add_scaled<Lanes>(row.history[h], other, y);
    }
  }
  if constexpr (scored) {
    for (uint32_t j = 0; j < n; ++j) distance[j] = y[j];
  }
  if (more && tile.prediction != nullptr) {
    if (a.prediction_kind == GMM_PREDICTION_X0) {
      at.template write<TypeOf::sample>(tile.prediction, a.prediction.dtype, x0);
    } else {
      for (uint32_t j = 0; j < n; ++j) {
        const bool mean = a.prediction_kind == GMM_PREDICTION_MEAN;
        const bool epsilon = a.prediction_kind == GMM_PREDICTION_EPSILON;
        other[j] = mean ? y[j] : epsilon ? predict_epsilon<Lanes>(row, x[j], o[j]) : o[j];
      }
      at.template write<TypeOf::sample>(tile.prediction, a.prediction.dtype, other);
    }
  }
  if (tile.offset != nullptr) {
    at.read_table(tile.offset, tile.count, other);
    add_scaled<Lanes>(row.offset, other, y);
  }
  if ((more || n == 4) && tile.noise) {
    float z[n];
    at.draw(tile.keys, tile.element, tile.step, Stream::transition, z);
    if (at.i + n <= tile.std_count) {
      at.read_table(tile.std, tile.std_count, other);
      add_product<Lanes>(other, z, y);
    } else if (at.i < tile.std_count) {
      at.read_table(tile.std, tile.std_count, other);
      for (uint32_t j = 0; j < n; ++j) {
        y[j] = Lanes::fma(at.i + j < tile.std_count ? other[j] : row.sigma, T(z[j]), y[j]);
      }
    } else {
      for (uint32_t j = 0; j < n; ++j) other[j] = row.sigma;
      add_product<Lanes>(other, z, y);
    }
  }
  at.template write<TypeOf::sample>(tile.result, a.result.dtype, y);
  if constexpr (scored) {
    for (uint32_t j = 0; j < n; ++j) distance[j] = Lanes::sub(rounded(y[j], a.result.dtype), distance[j]);
  }
}

// ---- a whole tile ----

template <int32_t dtype, class T>
GMM_INLINE void fill_with_nan(const gmm_step_arguments& a, const StepTile<T>& tile, uint32_t thread) {
  const T nan = static_cast<T>(bits_float(0x7FC00000));
  const T values[4] = {nan, nan, nan, nan};
  GMM_NO_UNROLL
  for (uint32_t i = 4 * thread; i < tile.count; i += 4 * block_threads) {
    const FourElements<T, dtype, dtype> at = {i, tile.count};
    at.template write<TypeOf::sample>(tile.result, a.result.dtype, values);
    if (tile.prediction != nullptr) at.template write<TypeOf::sample>(tile.prediction, a.prediction.dtype, values);
  }
}

// The elements of the tile from the given one on, which is a multiple of 8: eight at a time, but what is not aligned or
// too few for that. Without `more` eight draw no noise, for which the plain kernels have their loops, and no registers.
template <int32_t sample_dtype, int32_t output_dtype, bool more>
GMM_INLINE void step_known(const gmm_step_arguments& a, const StepTile<float>& tile, uint32_t from, uint32_t thread) {
  const uint32_t end = tile.aligned && (more || !tile.noise) ? tile.count / 8 * 8 : 0;
  float eight[8], four[4];
  GMM_NO_UNROLL
  for (uint32_t i = from + 8 * thread; i < end; i += 8 * block_threads) {
    const EightElements<sample_dtype, output_dtype> at = {i};
    step_elements<false, more>(a, tile, at, eight);
  }
  GMM_NO_UNROLL
  for (uint32_t i = (from > end ? from : end) + 4 * thread; i < tile.count; i += 4 * block_threads) {
    const FourElements<float, sample_dtype, output_dtype> at = {i, tile.count};
    step_elements<false, more>(a, tile, at, four);
  }
}

// A step of one type, without history, prediction and guidance, where noise begins with a Philox block.
template <int32_t dtype>
GMM_INLINE void step_plain(const gmm_step_arguments& a, const StepTile<float>& tile, uint32_t thread) {
  if (tile.kind == TileKind::nothing) return;
  if (tile.kind == TileKind::invalid) {
    fill_with_nan<dtype>(a, tile, thread);
    return;
  }
  const bool fast = tile.aligned && tile.clip != Clip::exact && tile.kind != TileKind::mixed;
  const uint32_t end = tile.count / 8 * 8;
  // What the loops leave comes first, so that nothing of it takes a register from them.
  step_known<dtype, dtype, false>(a, tile, fast ? end : 0, thread);
  if (!fast) return;
  const bool free = tile.clip == Clip::none;
  if (tile.kind == TileKind::mixture) {
    free ? step_fast<dtype, FreeLanes, true, true>(tile, end, thread)
         : step_fast<dtype, CudaLanes, true, true>(tile, end, thread);
  } else if (tile.kind == TileKind::shifted) {
    free ? step_fast<dtype, FreeLanes, true, false>(tile, end, thread)
         : step_fast<dtype, CudaLanes, true, false>(tile, end, thread);
  } else {
    free ? step_fast<dtype, FreeLanes, false, false>(tile, end, thread)
         : step_fast<dtype, CudaLanes, false, false>(tile, end, thread);
  }
}

// A step of types known when compiling, where noise begins with a Philox block.
template <int32_t sample_dtype, int32_t output_dtype>
GMM_INLINE void step_typed(const gmm_step_arguments& a, const StepTile<float>& tile, uint32_t thread) {
  if (tile.kind == TileKind::nothing) return;
  if (tile.kind == TileKind::invalid) {
    fill_with_nan<sample_dtype>(a, tile, thread);
  } else {
    step_known<sample_dtype, output_dtype, true>(a, tile, 0, thread);
  }
}

template <class T>
GMM_INLINE void step_any(const gmm_step_arguments& a, const StepTile<T>& tile, uint32_t thread) {
  if (tile.kind == TileKind::nothing) return;
  if (tile.kind == TileKind::invalid) {
    fill_with_nan<any_dtype>(a, tile, thread);
    return;
  }
  T nothing[4];
  for (uint32_t i = 4 * thread; i < tile.count; i += 4 * block_threads) {
    step_elements<false, true>(a, tile, FourElements<T, any_dtype, any_dtype>{i, tile.count}, nothing);
  }
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
    fill_with_nan<any_dtype>(a, tile, thread);
  } else if (i < tile.count) {
    step_elements<true, true>(a, tile, FourElements<T, any_dtype, any_dtype>{i, tile.count}, distance);
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
