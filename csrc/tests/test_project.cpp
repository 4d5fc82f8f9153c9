// Projections: the fixed order of products and sums, on every instruction set and in the bodies of the CUDA kernels.

#include <cmath>

#include "check.h"
#include "cuda/project_body.h"
#include "emulated_backward.h"
#include "project_case.h"

namespace {

using gmmkernel::Columns, gmmkernel::Place, gmmkernel::ThreadElements;

// Halved until one number is left; tiles of 1024, then of 1024 tiles' sums, and so on.
template <class T>
T plain_sum(std::vector<T> values) {
  do {
    std::vector<T> sums;
    values.resize((values.size() + 1023) / 1024 * 1024);
    for (auto tile = values.begin(); tile != values.end(); tile += 1024) {
      for (int width = 512; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) tile[i] += tile[i + width];
      }
      sums.push_back(tile[0]);
    }
    values = sums.empty() ? std::vector<T>{0} : sums;
  } while (values.size() > 1);
  return values[0];
}

template <class T>
void project_plainly(ProjectCase& c) {
  const gmm_project_arguments& a = c.arguments;
  for (int64_t b = 0; b < a.batch; ++b) {
    const int64_t entry = a.table_rows == 1 ? 0 : c.row[static_cast<size_t>(b)];
    for (int64_t k = 0; k < a.columns; ++k) {
      std::vector<T> products;
      for (int64_t i = 0; i < a.elements; ++i) {
        products.push_back(static_cast<T>(c.table.get(entry, k * a.elements + i)) * static_cast<T>(c.sample.get(b, i)));
      }
      c.result.set(b, k, plain_sum(products));
    }
  }
}

template <class T>
void emulate_project(const gmm_project_arguments& a) {
  using namespace gmmkernel;
  const SumRows rows = sum_rows(a.workspace, a.batch, a.elements, a.columns);
  if (a.elements > 0) {
    for_blocks(a.batch, {a.elements, sum_tile}, [&](const Place& place) {
      const int64_t entry = entry_of(a, place.sample());
      if (entry < 0) return;
      const auto at = [&](uint32_t t) { return Place{place.tile, place.y, place.z, t}; };
      auto columns = uncleared<Columns<T>>();
      std::vector<ThreadElements<T>> x(block_threads);
      for_threads([&](uint32_t t) { load_sample(a, at(t), x[t]); });
      for (int64_t column = 0; column < a.columns; column += sum_columns) {
        for_threads([&](uint32_t t) { sum_products(a, at(t), entry, x[t], column, columns); });
        for_threads([&](uint32_t t) { sum_to_sixteenths(t, columns); });
        for_threads([&](uint32_t t) { write_products(rows, at(t), column, columns); });
      }
    });
  }
  emulate_sums<T>(rows);
  for_blocks(a.batch, {a.columns, block_threads}, [&](const Place& place) {
    for_threads([&](uint32_t t) { write_projection<T>(a, rows, {place.tile, place.y, place.z, t}); });
  });
}

template <class T>
void compare(const ProjectOptions& options, uint64_t seed) {
  ProjectCase expected(options, seed);
  project_plainly<T>(expected);
  for (const int32_t set : available_instruction_sets()) {
    for (const int32_t threads : {1, 3}) {
      ProjectCase got(options, seed);
      const gmm_cpu_options cpu = {threads, set};
      CHECK(gmm_cpu_project(&got.arguments, &cpu) == GMM_SUCCESS, "%s", gmm_last_error());
      CHECK(got.result.same_as(expected.result), "%lld elements, %lld columns, set %d, %d threads",
            (long long)options.elements, (long long)options.columns, set, threads);
    }
  }
  ProjectCase got(options, seed, 0xC3);
  emulate_project<T>(got.arguments);
  CHECK(got.result.same_as(expected.result), "CUDA, %lld elements, %lld columns", (long long)options.elements,
        (long long)options.columns);
}

void test_results() {
  uint64_t seed = 0;
  for (const int64_t elements : {0, 1, 3, 63, 257, 1024, 1025, 5000}) {
    for (const int64_t columns : {1, 3, 16, 37}) {
      for (const int64_t rows : {1, 3}) {
        ProjectOptions options = {3, elements, columns % 4, columns, rows};
        compare<float>(options, ++seed);
        options.dtype = GMM_FLOAT64;
        compare<double>(options, ++seed);
      }
    }
  }
  compare<float>({1, 1024 * 1025 - 5, 0, 2, 1}, ++seed);  // more than one tile of tiles' sums
}

// On a device, where nothing is read then.
void test_rows_out_of_range() {
  const ProjectOptions options = {5, 1030, 0, 17, 3};
  ProjectCase good(options, 7), bad(options, 7, 0xC3);
  bad.row[1] = 1 << 30;
  bad.row[4] = -1;
  const gmm_cpu_options cpu = {1, GMM_BEST};
  CHECK(gmm_cpu_project(&good.arguments, &cpu) == GMM_SUCCESS, "%s", gmm_last_error());
  emulate_project<float>(bad.arguments);
  for (int64_t b = 0; b < options.batch; ++b) {
    for (int64_t k = 0; k < options.columns; ++k) {
      const double value = bad.result.get(b, k);
      CHECK(b == 1 || b == 4 ? std::isnan(value) : value == good.result.get(b, k), "sample %lld", (long long)b);
    }
  }
}

void test_errors() {
  ProjectCase c({}, 1);
  const gmm_cpu_options cpu = {1, GMM_BEST};
  const auto refused = [&](gmm_status status, const char* named, auto&& spoil) {
    gmm_project_arguments a = c.arguments;
    spoil(a);
    CHECK(gmm_cpu_project(&a, &cpu) == status && std::strstr(gmm_last_error(), named) == gmm_last_error(), "%s: %s",
          named, gmm_last_error());
  };
  using Arguments = gmm_project_arguments;
  refused(GMM_INVALID_ARGUMENT, "batch: ", [](Arguments& a) { a.batch = -1; });
  refused(GMM_INVALID_ARGUMENT, "elements: ", [](Arguments& a) { a.elements = -1; });
  refused(GMM_INVALID_ARGUMENT, "sample: dtype 1", [](Arguments& a) { a.sample.dtype = GMM_BFLOAT16; });
  refused(GMM_INVALID_ARGUMENT, "sample: no data", [](Arguments& a) { a.sample.data = nullptr; });
  refused(GMM_INVALID_ARGUMENT, "columns: ", [](Arguments& a) { a.columns = 0; });
  refused(GMM_INVALID_ARGUMENT, "table: no data", [](Arguments& a) { a.table = nullptr; });
  refused(GMM_INVALID_ARGUMENT, "table_rows: ", [](Arguments& a) { a.table_rows = 0; });
  refused(GMM_INVALID_ARGUMENT, "result: ", [](Arguments& a) { a.result = nullptr; });
  refused(GMM_INVALID_ARGUMENT, "workspace: ", [](Arguments& a) { a.workspace = nullptr; });
  refused(GMM_OUT_OF_RANGE, "row: expected 0 to 2, got 3", [](Arguments& a) { a.row = {nullptr, 0, 3}; });
  CHECK(c.result.bytes_are(0x5A), "something was written");
  gmm_project_arguments nothing = c.arguments;
  nothing.batch = 0;
  CHECK(gmm_cpu_project(&nothing, &cpu) == GMM_SUCCESS, "%s", gmm_last_error());
  CHECK(gmm_cpu_project(nullptr, &cpu) == GMM_INVALID_ARGUMENT, "no arguments");
}

}  // namespace

int main() {
  test_results();
  test_rows_out_of_range();
  test_errors();
  return check_report();
}
