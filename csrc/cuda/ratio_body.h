// The bodies of the kernels for log-ratios: a tile's two sums; after the tree over the tiles, the results; and
// gradients.
#pragma once

#include "cuda/operands.h"
#include "cuda/sums_body.h"
#include "gmmkernel/ratio.h"

namespace gmmkernel {

// What the ratio of one sample needs; pointers lead to the tile's first element and are nullptr for what is absent.
template <class T>
struct alignas(16) RatioTile {
  Row<T> row;
  T inverse_std;
  const void *x, *prev, *output, *old_output, *uncond, *old_uncond;
  int64_t sample, first;
  uint32_t count;
  bool valid;  // the sample's row is in its table
};

template <class T>
GMM_INLINE void gather_ratio(const gmm_log_ratio_arguments& r, const Place& place, RatioTile<T>& tile) {
  const gmm_step_arguments& a = r.step;
  const Tiling tiling = {a.elements, sum_tile};
  const int64_t sample = place.sample(), first = place.first(tiling), row = index_at(a.row, sample);
  tile.sample = sample;
  tile.first = first;
  tile.count = place.count(tiling);
  tile.valid = row >= 0 && row < a.coefficient_rows;
  if (tile.valid) tile.row = static_cast<const Row<T>*>(a.coefficients)[row];
  tile.inverse_std = tile.valid ? inverse_std(tile.row.sigma) : static_cast<T>(bits_float(0x7FC00000));
  tile.x = sample_at<any_dtype>(a.sample, sample, first);
  tile.prev = sample_at<any_dtype>(r.prev_sample, sample, first);
  tile.output = sample_at<any_dtype>(a.model_output, sample, first);
  tile.old_output = sample_at<any_dtype>(r.old_model_output, sample, first);
  tile.uncond = present_at<any_dtype>(a.model_output_uncond, sample, first);
  tile.old_uncond = present_at<any_dtype>(r.old_model_output_uncond, sample, first);
}

// An element's numbers, both last ones in units of the standard deviation: by what the mean changes, and how far the
// sample is from the old one.
template <class T>
struct ElementRatio {
  T x;
  OutputPair<typename LanesOf<T>::type> pair;
  T change, distance;
};

template <class T>
GMM_INLINE ElementRatio<T> ratio_at(const gmm_log_ratio_arguments& r, const RatioTile<T>& tile, uint32_t i) {
  using Lanes = typename LanesOf<T>::type;
  const gmm_step_arguments& a = r.step;
  const Row<T>& row = tile.row;
  ElementRatio<T> e;
  e.x = load_element<T>(tile.x, a.sample.dtype, i);
  const T output = load_element<T>(tile.output, a.model_output.dtype, i);
  const T old = load_element<T>(tile.old_output, r.old_model_output.dtype, i);
  e.pair = {output, old, Lanes::sub(output, old)};
  if (tile.uncond != nullptr) {
    const T uncond = load_element<T>(tile.uncond, a.model_output_uncond.dtype, i);
    const T old_uncond = load_element<T>(tile.old_uncond, r.old_model_output_uncond.dtype, i);
    e.pair = guide_pair<Lanes>(row, uncond, old_uncond, e.pair);
  }
  const T old_x0 = predict_x0<Lanes>(row, e.x, e.pair.old_output);
  T mean = predict_mean<Lanes>(row, e.x, e.pair.old_output, old_x0);
  GMM_UNROLL(4)
  for (int h = 0; h < GMM_MAX_HISTORY; ++h) {
    const gmm_input& stored = a.history[h];
    if (stored.data == nullptr || row.history[h] == 0) continue;
    const void* history = sample_at<any_dtype>(stored, tile.sample, tile.first);
    mean = Lanes::fma(row.history[h], load_element<T>(history, stored.dtype, i), mean);
  }
  e.distance = Lanes::mul(Lanes::sub(load_element<T>(tile.prev, a.sample.dtype, i), mean), tile.inverse_std);
  e.change = Lanes::mul(change_of_mean<Lanes>(row, e.x, e.pair), tile.inverse_std);
  return e;
}

// ---- a tile's sums, of the log-ratio and of the divergence ----

constexpr int64_t ratio_columns = 2;

template <class T>
GMM_INLINE void sum_ratio_quarters(const gmm_log_ratio_arguments& r, const RatioTile<T>& tile, uint32_t thread,
                                   Columns<T>& columns) {
  using Lanes = typename LanesOf<T>::type;
  if (!tile.valid) {
    for (int c = 0; c < ratio_columns; ++c) columns.quarters[c][thread] = static_cast<T>(bits_float(0x7FC00000));
    return;
  }
  T ratio[4] = {}, divergence[4] = {};
  for (uint32_t j = 0; j < 4; ++j) {
    const uint32_t i = thread + block_threads * j;
    if (i >= tile.count) continue;
    const ElementRatio<T> e = ratio_at(r, tile, i);
    ratio[j] = ratio_term<Lanes>(e.change, e.distance);
    divergence[j] = divergence_term<Lanes>(e.change);
  }
  columns.quarters[0][thread] = sum_four([&](int j) { return ratio[j]; });
  columns.quarters[1][thread] = sum_four([&](int j) { return divergence[j]; });
}

template <class T>
GMM_INLINE void write_ratio_sums(const SumRows& rows, const RatioTile<T>& tile, uint32_t thread,
                                 const Columns<T>& columns) {
  if (thread >= ratio_columns) return;
  sums_of<T>(rows, tile.sample)[tile.first / sum_tile * ratio_columns + thread] =
      sum_of_sixteenths(columns.sixteenths, thread);
}

// One number of the result, [batch][2].
template <class T>
GMM_INLINE void write_ratio(const gmm_log_ratio_arguments& r, const SumRows& rows, int64_t number) {
  if (number >= r.step.batch * ratio_columns) return;
  const int64_t sample = number / ratio_columns, row = index_at(r.step.row, sample);
  T value = rows.tiles == 0 ? T(0) : sums_of<T>(rows, sample)[number % ratio_columns];
  if (row < 0 || row >= r.step.coefficient_rows) value = static_cast<T>(bits_float(0x7FC00000));
  static_cast<T*>(r.result)[number] = value;
}

// ---- gradients ----

template <class T>
GMM_INLINE void ratio_backward_element(const gmm_log_ratio_backward_arguments& b, const RatioTile<T>& tile,
                                       const T* grad, uint32_t i) {
  using Lanes = typename LanesOf<T>::type;
  const T of_ratio = grad[0], of_divergence = grad[1];
  const bool none = tile.valid && of_ratio == 0 && of_divergence == 0;
  ElementRatio<T> e = {};
  RatioFlow<Lanes> flow = {};
  if (tile.valid && !none) {
    e = ratio_at(b.of, tile, i);
    flow = ratio_back<Lanes>(e.change, e.distance, of_ratio, of_divergence, tile.inverse_std);
  }
  const auto put = [&](const gmm_output& target, T value) {
    void* data = present_at<any_dtype>(target, tile.sample, tile.first);
    if (data == nullptr) return;
    const T values[1] = {none ? T(0) : tile.valid ? value : static_cast<T>(bits_float(0x7FC00000))};
    store_some(data, target.dtype, i, tile.count, values);
  };
  const auto put_outputs = [&](const gmm_output& conditional, const gmm_output& uncond, T output, T of_mean) {
    if (conditional.data == nullptr && uncond.data == nullptr) return;
    const T whole = flow_back<Lanes>(tile.row, e.x, output, of_mean, PredictionKind::none, of_mean).grad_output;
    const T part = tile.uncond == nullptr ? whole : Lanes::mul(tile.row.guidance, whole);
    put(conditional, part);
    put(uncond, Lanes::sub(whole, part));
  };
  put(b.grad_prev_sample, flow.prev);
  put_outputs(b.grad_model_output, b.grad_model_output_uncond, e.pair.output, flow.mean);
  put_outputs(b.grad_old_model_output, b.grad_old_model_output_uncond, e.pair.old_output, flow.old_mean);
  if (b.grad_sample.data != nullptr) put(b.grad_sample, shared_back<Lanes>(tile.row, e.x, e.pair, flow));
  GMM_UNROLL(4)
  for (int h = 0; h < GMM_MAX_HISTORY; ++h) {
    if (b.grad_history[h].data == nullptr) continue;
    put(b.grad_history[h], Lanes::mul(tile.row.history[h], Lanes::mul(T(-1), flow.prev)));
  }
}

template <class T>
GMM_INLINE void ratio_backward(const gmm_log_ratio_backward_arguments& b, const RatioTile<T>& tile, uint32_t thread) {
  const int64_t tiles = (b.of.step.elements + sum_tile - 1) / sum_tile;
  const int64_t place = b.of_tiles ? tile.sample * tiles + tile.first / sum_tile : tile.sample;
  const T* grad = static_cast<const T*>(b.grad) + ratio_columns * place;
  GMM_NO_UNROLL
  for (uint32_t i = thread; i < tile.count; i += block_threads) ratio_backward_element(b, tile, grad, i);
}

}  // namespace gmmkernel
