/* The C interface from C: the header compiles as C, the values are what other languages may copy, and calls work. */

#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "gmmkernel/gmmkernel.h"

#define CHECK(condition)                                              \
  do {                                                                \
    if (!(condition)) {                                               \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
      return 1;                                                       \
    }                                                                 \
  } while (0)

int main(void) {
  char version[32];
  float noise[5] = {9, 9, 9, 9, 9};
  const int64_t seed = 1, step = 0;
  const gmm_cpu_options options = {1, GMM_BEST};
  gmm_normal_arguments arguments;

  snprintf(version, sizeof version, "%d.%d.%d", GMM_VERSION_MAJOR, GMM_VERSION_MINOR, GMM_VERSION_PATCH);
  CHECK(strcmp(gmm_version(), version) == 0);

  memset(&arguments, 0, sizeof arguments);
  arguments.batch = 1;
  arguments.elements = 4;
  arguments.result.data = noise;
  arguments.result.batch_stride = 4;
  arguments.result.dtype = GMM_FLOAT32;
  arguments.step.data = &step;
  arguments.stream = GMM_STREAM_INITIAL;
  CHECK(gmm_cpu_standard_normal(&arguments, &options) == GMM_INVALID_ARGUMENT);
  CHECK(strcmp(gmm_last_error(), "seeds: no data") == 0);
  arguments.seeds = &seed;
  CHECK(gmm_cpu_standard_normal(&arguments, &options) == GMM_SUCCESS);
  CHECK(noise[0] != 9 && noise[3] != 9 && noise[4] == 9);
  CHECK(noise[0] > -6.7f && noise[0] < 6.7f && noise[0] != noise[1]);

  CHECK(gmm_cpu_best_instruction_set() >= GMM_PORTABLE && gmm_cpu_best_instruction_set() <= GMM_AVX512);
  return 0;
}
