// The bodies of the log-densities' kernels on the host: what launch_log_prob and launch_log_prob_backward run.
#pragma once

#include "cuda/density_backward_body.h"
#include "emulated_backward.h"

namespace gmmkernel {

template <class T>
void emulate_density(const gmm_log_prob_arguments& p) {
  const gmm_step_arguments& a = p.step;
  const SumRows rows = sum_rows(p.workspace, a, a.mixture.components + 1);
  const Tiling tiling = {a.elements, sum_tile};
  if (a.elements > 0) {
    for_blocks(a.batch, tiling, [&](const Place& place) {
      auto tile = uncleared<DensityTile<T>>();
      auto columns = uncleared<Columns<T>>();
      gather_density(p, place.sample(), place.first(tiling), place.count(tiling), tile);
      if (!tile.valid) return;
      std::vector<DensityElements<T>> elements(block_threads);
      for_threads([&](uint32_t t) { load_elements(p, tile, t, elements[t]); });
      for (int64_t column = 0; column < rows.columns; column += sum_columns) {
        for_threads([&](uint32_t t) {
          is_shifted_alone(p, tile) ? sum_shifted_quarters(p, tile, t, elements[t], column, columns)
                                    : sum_density_quarters(p, tile, t, elements[t], column, columns);
        });
        for_threads([&](uint32_t t) { sum_to_sixteenths(t, columns); });
        for_threads([&](uint32_t t) { write_density_sums(rows, tile, t, column, columns); });
      }
    });
  }
  emulate_sums<T>(rows);
  for (int64_t sample = 0; sample < a.batch; ++sample) {
    auto parts = uncleared<DensityParts<T>>();
    std::vector<ThreadComponents<T>> components(block_threads);
    for_threads([&](uint32_t t) { find_levels(p, rows, sample, t, components[t], parts); });
    for_threads([&](uint32_t t) { find_largest(t, parts); });
    for_threads([&](uint32_t t) { find_parts(p, t, components[t], parts); });
    for_threads([&](uint32_t t) { sum_parts(t, parts); });
    for_threads([&](uint32_t t) { write_density(p, rows, sample, t, components[t], parts); });
  }
}

inline void emulate_log_prob(const gmm_log_prob_arguments& p) {
  if (p.step.sample.dtype == GMM_FLOAT64) {
    emulate_density<double>(p);
  } else {
    emulate_density<float>(p);
  }
}

template <class T, bool sums>
void emulate_density_samples(const gmm_log_prob_backward_arguments& b, const SumRows& rows) {
  const Tiling tiling = {b.of.step.elements, sum_tile};
  for_blocks(b.of.step.batch, tiling, [&](const Place& place) {
    auto density = uncleared<DensityTile<T>>();
    auto tile = uncleared<BackwardTile<T>>();
    auto columns = uncleared<Columns<T>>();
    gather<true, any_dtype, any_dtype, false>(b.gradients, tiling, place, tile);
    gather_density(b.of, place.sample(), place.first(tiling), place.count(tiling), density);
    for_threads([&](uint32_t t) { density_backward<sums>(b, density, tile, t, &columns); });
    if (!sums) return;
    for_threads([&](uint32_t t) { sum_to_sixteenths(t, columns); });
    for_threads([&](uint32_t t) { write_sums(rows, tile, t, columns); });
  });
}

template <class T, bool offsets>
void emulate_density_entries(const gmm_log_prob_backward_arguments& b, const Table& table) {
  if (table.data == nullptr || table.elements == 0) return;
  const Tiling tiling = {table.elements, block_threads};
  const uint32_t together = offsets ? entries_together : 1;
  for_blocks(table.rows * parts_of_row(table, together), tiling, [&](const Place& place) {
    const int64_t first = place.first(tiling);
    const uint32_t count = place.count(tiling);
    const Part part = part_of(table, place.sample(), together);
    struct Sum {
      T of[entries_together] = {};
    };
    std::vector<Sum> sums(block_threads);
    auto users = uncleared<RowUsers>();
    for (int64_t sample = 0; sample < b.of.step.batch; sample += block_threads) {
      for_threads([&](uint32_t t) { find_row_user<T>(b, table.rows, part.row, sample, t, users); });
      for_threads([&](uint32_t t) {
        add_density_users<T, offsets>(b, users, sample, first, count, t, part.component, sums[t].of);
      });
    }
    for_threads([&](uint32_t t) { write_density_entries<T, offsets>(table, part, first, count, t, sums[t].of); });
  });
}

template <class T>
void emulate_density_backward(const gmm_log_prob_backward_arguments& b) {
  const gmm_step_arguments& a = b.of.step;
  const bool any = a.batch > 0 && a.elements > 0;
  if (b.gradients.grad_coefficients != nullptr) {
    gmm_step_backward_arguments of_rows = b.gradients;
    if (!any) of_rows.step.batch = 0;
    const SumRows rows = sum_rows(of_rows.workspace, of_rows.step, row_columns);
    if (any) emulate_density_samples<T, true>(b, rows);
    emulate_coefficients<T>(of_rows, rows);
  } else if (any && (writes_samples(b.gradients) || b.grad_prev_sample.data != nullptr)) {
    emulate_density_samples<T, false>(b, {});
  }
  if (b.grad_weights != nullptr) {
    const int64_t numbers = b.of.weight_rows * a.mixture.components;
    for (int64_t n = 0; n < numbers + 5; ++n) add_shares<T>(b, n);
  }
  emulate_density_entries<T, true>(b, offsets_of(b.gradients));
  emulate_density_entries<T, false>(b, std_of(b.gradients));
}

inline void emulate_log_prob_backward(const gmm_log_prob_backward_arguments& given) {
  const gmm_log_prob_backward_arguments b = completed(given);
  if (b.of.step.sample.dtype == GMM_FLOAT64) {
    emulate_density_backward<double>(b);
  } else {
    emulate_density_backward<float>(b);
  }
}

}  // namespace gmmkernel
