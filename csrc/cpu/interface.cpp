// The C interface on the CPU: check, pick the kernels, split the work over threads.

#include <cmath>
#include <memory>
#include <new>

#include "common/checks.h"
#include "common/layout.h"
#include "cpu/dispatch.h"
#include "cpu/float_environment.h"
#include "cpu/parallel.h"
#include "gmmkernel/gmmkernel.h"
#include "gmmkernel/training.h"
#include "gmmkernel/transition.h"

namespace gmmkernel {
namespace {

static_assert(sizeof(Row<float>) == GMM_ROW_COLUMNS * sizeof(float), "the interface's columns are the row's");
static_assert(training_columns == GMM_TRAINING_COLUMNS, "the interface's columns are the row's");

// Elements that one thread takes at a time: large enough to hide the hand-over, small enough to balance.
constexpr int64_t piece_elements = 16384;

// The same where every sample of the batch is gone through: smaller, so that sums stay in cache.
constexpr int64_t scatter_elements = 4096;

int64_t tiles_of(int64_t elements) { return GMM_SUM_ENTRIES(elements) - 1; }

// Tiles that one thread takes at a time, each of them as much work as the mixture has components.
int64_t piece_of(const gmm_log_prob_arguments& p) { return p.step.mixture.components < 8 ? 8 : 1; }

int pick(const gmm_cpu_options* options, const Kernels*& kernels) {
  if (options == nullptr) return fail(GMM_INVALID_ARGUMENT, "options: missing");
  if (options->threads < 1) {
    return fail(GMM_INVALID_ARGUMENT, "threads: expected at least 1, got %d", options->threads);
  }
  kernels = kernels_for(options->instruction_set);
  if (kernels == nullptr) {
    return fail(GMM_UNAVAILABLE, "instruction_set: %d is not available on this processor or in this build",
                options->instruction_set);
  }
  return GMM_SUCCESS;
}

// An entry of the interface: run(arguments, kernels) if there is nothing to complain of.
template <class Arguments, class Run>
int enter(const Arguments* arguments, const gmm_cpu_options* options, Run&& run) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  const Kernels* kernels = nullptr;
  if (const int status = pick(options, kernels)) return status;
  if (const int status = check(*arguments, Memory::host)) return status;
  run(*arguments, *kernels);
  return GMM_SUCCESS;
}

void draw_components(const gmm_component_arguments& a) {
  for (int64_t b = 0; b < a.batch; ++b) {
    if (a.components == 1) {
      a.result[b] = 0;
      continue;
    }
    const int64_t table = a.cdf_rows == 1 ? 0 : index_at(a.row, b);
    const PhiloxKeys keys = philox_keys(static_cast<uint64_t>(a.seeds[b]));
    a.result[b] = choose_component(keys, static_cast<uint32_t>(index_at(a.step, b)), a.cdf + table * (a.components - 1),
                                   a.components);
  }
}

}  // namespace
}  // namespace gmmkernel

using namespace gmmkernel;

int gmm_cpu_step(const gmm_step_arguments* arguments, const gmm_cpu_options* options) {
  return enter(arguments, options, [&](const gmm_step_arguments& a, const Kernels& kernels) {
    if (a.components != nullptr) {
      const int64_t k = a.mixture.components > 0 ? a.mixture.components : 1;
      draw_components({a.batch, a.components, a.seeds, a.row, a.step, k, a.mixture.cdf, a.mixture.cdf_rows});
    }
    const TypedKernels& of = kernels.of(a.sample.dtype);
    if (a.log_prob != nullptr) {
      parallel_for(a.batch * tiles_of(a.elements), piece_elements / 1024, options->threads,
                   [&](int64_t first, int64_t last) { of.step_density_tiles(a, first, last); });
      const ExactFloatEnvironment environment;
      of.sum_densities(a);
      return;
    }
    const auto run = of.step;
    parallel_for(a.batch * kernels.groups_per_sample(a.elements), piece_elements / kernels.group_elements,
                 options->threads, [&](int64_t first, int64_t last) { run(a, first, last); });
  });
}

int gmm_cpu_step_backward(const gmm_step_backward_arguments* arguments, const gmm_cpu_options* options) {
  return enter(arguments, options, [&](const gmm_step_backward_arguments& b, const Kernels& kernels) {
    const gmm_step_arguments& a = b.step;

    const TypedKernels& of = kernels.of(a.sample.dtype);
    parallel_for(a.batch * tiles_of(a.elements), piece_elements / 1024, options->threads,
                 [&](int64_t first, int64_t last) { of.backward(b, first, last); });
    if (b.grad_coefficients != nullptr) {
      const ExactFloatEnvironment environment;
      of.sum_rows(b);
    }
    if (b.grad_offsets != nullptr || b.grad_std != nullptr) {
      parallel_for(kernels.groups_per_sample(a.elements), scatter_elements / kernels.group_elements, options->threads,
                   [&](int64_t first, int64_t last) { of.scatter(b, first, last); });
    }
  });
}

int gmm_cpu_log_prob(const gmm_log_prob_arguments* arguments, const gmm_cpu_options* options) {
  return enter(arguments, options, [&](const gmm_log_prob_arguments& p, const Kernels& kernels) {
    const TypedKernels& of = kernels.of(p.step.sample.dtype);
    parallel_for(p.step.batch * tiles_of(p.step.elements), piece_of(p), options->threads,
                 [&](int64_t first, int64_t last) { of.log_prob_tiles(p, first, last); });
    if (p.log_prob == nullptr) return;
    parallel_for(p.step.batch, 16, options->threads,
                 [&](int64_t first, int64_t last) { of.log_prob_samples(p, first, last); });
  });
}

int gmm_cpu_log_prob_backward(const gmm_log_prob_backward_arguments* arguments, const gmm_cpu_options* options) {
  return enter(arguments, options, [&](const gmm_log_prob_backward_arguments& b, const Kernels& kernels) {
    const gmm_step_arguments& a = b.of.step;
    const TypedKernels& of = kernels.of(a.sample.dtype);
    parallel_for(a.batch * tiles_of(a.elements), piece_of(b.of), options->threads,
                 [&](int64_t first, int64_t last) { of.log_prob_backward(b, first, last); });
    {
      const ExactFloatEnvironment environment;
      if (b.gradients.grad_coefficients != nullptr) {
        gmm_step_backward_arguments rows = b.gradients;
        rows.step = a;
        of.sum_rows(rows);
      }
      if (b.grad_weights != nullptr) of.sum_weights(b);
    }
    if (b.gradients.grad_offsets != nullptr || b.gradients.grad_std != nullptr) {
      parallel_for(kernels.groups_per_sample(a.elements), 1024 / kernels.group_elements, options->threads,
                   [&](int64_t first, int64_t last) { of.log_prob_scatter(b, first, last); });
    }
  });
}

int gmm_cpu_log_ratio(const gmm_log_ratio_arguments* arguments, const gmm_cpu_options* options) {
  return enter(arguments, options, [&](const gmm_log_ratio_arguments& a, const Kernels& kernels) {
    const TypedKernels& of = kernels.of(a.step.sample.dtype);
    parallel_for(a.step.batch * tiles_of(a.step.elements), piece_elements / 1024, options->threads,
                 [&](int64_t first, int64_t last) { of.log_ratio_tiles(a, first, last); });
    const ExactFloatEnvironment environment;
    if (a.result != nullptr) of.sum_ratios(a);
  });
}

int gmm_cpu_log_ratio_backward(const gmm_log_ratio_backward_arguments* arguments, const gmm_cpu_options* options) {
  return enter(arguments, options, [&](const gmm_log_ratio_backward_arguments& b, const Kernels& kernels) {
    const gmm_step_arguments& a = b.of.step;
    const TypedKernels& of = kernels.of(a.sample.dtype);
    parallel_for(a.batch * tiles_of(a.elements), piece_elements / 1024, options->threads,
                 [&](int64_t first, int64_t last) { of.log_ratio_backward(b, first, last); });
  });
}

int gmm_cpu_add_noise(const gmm_add_noise_arguments* arguments, const gmm_cpu_options* options) {
  return enter(arguments, options, [&](const gmm_add_noise_arguments& a, const Kernels& kernels) {
    const TypedKernels& of = kernels.of(a.sample.dtype);
    parallel_for(a.training.batch * tiles_of(a.training.elements), piece_elements / 1024, options->threads,
                 [&](int64_t first, int64_t last) { of.add_noise(a, first, last); });
  });
}

int gmm_cpu_skip_loss(const gmm_skip_loss_arguments* arguments, const gmm_cpu_options* options) {
  return enter(arguments, options, [&](const gmm_skip_loss_arguments& a, const Kernels& kernels) {
    const TypedKernels& of = kernels.of(a.model_output.dtype);
    parallel_for(a.training.batch * tiles_of(a.training.elements), piece_elements / 1024, options->threads,
                 [&](int64_t first, int64_t last) { of.skip_loss_tiles(a, first, last); });
    const ExactFloatEnvironment environment;
    of.skip_loss_samples(a);
  });
}

int gmm_cpu_scale_residual(const gmm_scale_residual_arguments* arguments, const gmm_cpu_options* options) {
  return enter(arguments, options, [&](const gmm_scale_residual_arguments& a, const Kernels& kernels) {
    const TypedKernels& of = kernels.of(a.residual.dtype);
    parallel_for(a.training.batch * tiles_of(a.training.elements), piece_elements / 1024, options->threads,
                 [&](int64_t first, int64_t last) { of.scale_residual(a, first, last); });
  });
}

int gmm_cpu_skip_loss_backward(const gmm_skip_loss_backward_arguments* arguments, const gmm_cpu_options* options) {
  return enter(arguments, options, [&](const gmm_skip_loss_backward_arguments& b, const Kernels& kernels) {
    const gmm_training& t = b.of.training;
    const TypedKernels& of = kernels.of(b.of.model_output.dtype);
    parallel_for(t.batch * tiles_of(t.elements), piece_elements / 1024, options->threads,
                 [&](int64_t first, int64_t last) { of.skip_loss_backward(b, first, last); });
  });
}

int gmm_cpu_standard_normal(const gmm_normal_arguments* arguments, const gmm_cpu_options* options) {
  return enter(arguments, options, [&](const gmm_normal_arguments& a, const Kernels& kernels) {
    parallel_for(a.batch * kernels.groups_per_sample(a.elements), piece_elements / kernels.group_elements,
                 options->threads, [&](int64_t first, int64_t last) { kernels.standard_normal(a, first, last); });
  });
}

int gmm_cpu_draw_components(const gmm_component_arguments* arguments) {
  if (arguments == nullptr) return fail(GMM_INVALID_ARGUMENT, "arguments: missing");
  if (const int status = check(*arguments, Memory::host)) return status;
  draw_components(*arguments);
  return GMM_SUCCESS;
}

int gmm_cpu_project(const gmm_project_arguments* arguments, const gmm_cpu_options* options) {
  return enter(arguments, options, [&](const gmm_project_arguments& a, const Kernels& kernels) {
    const TypedKernels& of = kernels.of(a.sample.dtype);
    parallel_for(a.batch * tiles_of(a.elements), a.columns < 8 ? 8 : 1, options->threads,
                 [&](int64_t first, int64_t last) { of.project_tiles(a, first, last); });
    parallel_for(a.batch, 16, options->threads,
                 [&](int64_t first, int64_t last) { of.project_samples(a, first, last); });
  });
}

int gmm_cpu_orthonormalize(double* rows, int64_t row_count, int64_t elements, const gmm_cpu_options* options) {
  const Kernels* kernels = nullptr;
  if (const int status = pick(options, kernels)) return status;
  if (rows == nullptr) return fail(GMM_INVALID_ARGUMENT, "rows: no data");
  if (row_count < 1 || elements < row_count) {
    return fail(GMM_INVALID_ARGUMENT, "rows: expected 1 to %lld rows of %lld elements, got %lld", (long long)elements,
                (long long)elements, (long long)row_count);
  }
  const int64_t tiles = (elements + 1023) / 1024;
  const std::unique_ptr<double[]> partial(new (std::nothrow) double[tiles * row_count]);
  const std::unique_ptr<double[]> before(new (std::nothrow) double[row_count]);
  if (partial == nullptr || before == nullptr)
    return fail(GMM_OUT_OF_MEMORY, "rows: no memory for %lld partial sums", (long long)tiles);
  const ExactFloatEnvironment environment;
  const auto norm_of = [&](int64_t k) {
    const double* row = rows + k * elements;
    return std::sqrt(kernels->dot(row, row, elements, partial.get() + k * tiles));
  };
  for (int64_t k = 0; k < row_count; ++k) before[k] = norm_of(k);

  // A few finished rows at a time are taken out of every later row, so that they are still in cache when used.
  constexpr int64_t block = 8;
  for (int64_t first = 0; first < row_count; first += block) {
    const int64_t last = first + block < row_count ? first + block : row_count;
    const auto remove = [&](int64_t from, int64_t k) {
      double* row = rows + k * elements;
      for (int64_t j = from; j < (k < last ? k : last); ++j) {
        const double* done = rows + j * elements;
        const double projection = kernels->dot(row, done, elements, partial.get() + k * tiles);
        kernels->subtract_scaled(row, done, projection, elements);
      }
    };
    for (int64_t k = first; k < last; ++k) {
      double* row = rows + k * elements;
      remove(first, k);
      const double norm = norm_of(k);
      if (!(norm > before[k] * 0x1p-40 && std::isfinite(norm))) {
        return fail(GMM_INVALID_ARGUMENT, "rows: expected linearly independent finite rows, row %lld has norm %g left",
                    (long long)k, norm);
      }
      for (int64_t i = 0; i < elements; ++i) row[i] /= norm;
    }
    parallel_for(row_count - last, 1, options->threads, [&](int64_t begin, int64_t end) {
      for (int64_t k = last + begin; k < last + end; ++k) remove(first, k);
    });
  }
  return GMM_SUCCESS;
}

int gmm_cpu_best_instruction_set(void) { return best_instruction_set(); }
