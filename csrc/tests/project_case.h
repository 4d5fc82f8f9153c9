// A call of gmm_cpu_project, with everything it points to, filled with random numbers.
#pragma once

#include "step_case.h"

struct ProjectOptions {
  int64_t batch = 2, elements = 100, padding = 0, columns = 3, table_rows = 3;
  int32_t dtype = GMM_FLOAT32;
};

struct ProjectCase {
  ProjectCase(const ProjectOptions& o, uint64_t seed, unsigned char poison = 0x5A)
      : sample(o.dtype, o.batch, o.elements, o.padding, poison),
        table(o.dtype, o.table_rows, o.columns * o.elements, 0, poison),
        result(o.dtype, o.batch, o.columns, 0, poison),
        workspace(o.dtype, o.batch, GMM_SUM_ENTRIES(o.elements) * o.columns, 0, poison) {
    TestRandom random(seed);
    sample.fill(random, false);
    table.fill(random, false);
    for (int64_t b = 0; b < o.batch; ++b) {
      row.push_back(o.table_rows == 1 ? -1 : random.word() % static_cast<uint32_t>(o.table_rows));
    }
    arguments = {o.batch,
                 o.elements,
                 {sample.data(), sample.stride(), o.dtype},
                 o.columns,
                 table.data(),
                 o.table_rows,
                 {row.data(), 1, 0},
                 result.data(),
                 workspace.data()};
  }
  ProjectCase(const ProjectCase&) = delete;
  ProjectCase& operator=(const ProjectCase&) = delete;

  Tensor sample, table, result, workspace;
  std::vector<int64_t> row;
  gmm_project_arguments arguments = {};
};
