/* gmmkernel's C interface: one diffusion sampling step with a Gaussian-mixture transition in one pass, and training.
 *
 * Plain pointers and sizes, no Python, no PyTorch. The functions that compute return a gmm_status; on anything but
 * GMM_SUCCESS nothing has been written and gmm_last_error() describes, for the calling thread, the argument at fault.
 *
 * A sample is `elements` contiguous numbers; sample b starts `b * batch_stride` elements after `data`.
 */
#ifndef GMMKERNEL_GMMKERNEL_H
#define GMMKERNEL_GMMKERNEL_H

#include <stdint.h>

#define GMM_VERSION_MAJOR 0
#define GMM_VERSION_MINOR 2
#define GMM_VERSION_PATCH 0

#define GMM_MAX_COMPONENTS 1024
#define GMM_MAX_HISTORY 4
#define GMM_ROW_COLUMNS 16
#define GMM_TRAINING_COLUMNS 9

#if defined(_WIN32)
#define GMM_API
#else
#define GMM_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum gmm_status {
  GMM_SUCCESS = 0,
  GMM_INVALID_ARGUMENT = 1, /* a missing pointer, a size or a type that is not allowed */
  GMM_OUT_OF_RANGE = 2,     /* a row or step index outside its table */
  GMM_UNAVAILABLE = 3,      /* an instruction set that this processor or build does not have */
  GMM_OUT_OF_MEMORY = 4,
  GMM_CUDA_ERROR = 5 /* the CUDA runtime refused a call; the message is its own */
} gmm_status;

typedef enum gmm_dtype { GMM_FLOAT32 = 0, GMM_BFLOAT16 = 1, GMM_FLOAT16 = 2, GMM_FLOAT64 = 3 } gmm_dtype;

/* Columns of a coefficient row. With o the (guided) model output and z standard normal noise:
 *   o    = o_u + GUIDANCE (o_c - o_u)                              when there is a guidance pair
 *   x0   = clip(X0_SAMPLE x + X0_OUTPUT o, CLIP_MIN, CLIP_MAX)
 *   mean = SAMPLE x + OUTPUT o + X0 x0 + sum_j HISTORY_j hist_j
 *   x_s  = mean + OFFSET delta_k + std z                           std is SIGMA where the mixture gives none
 *   eps  = EPS_SAMPLE x + EPS_OUTPUT o
 * Where there is no hist_j its term is left out, whatever HISTORY_j is, and without a pair GUIDANCE is not read.
 */
typedef enum gmm_column {
  GMM_X0_SAMPLE = 0,
  GMM_X0_OUTPUT = 1,
  GMM_CLIP_MIN = 2,
  GMM_CLIP_MAX = 3,
  GMM_SAMPLE = 4,
  GMM_OUTPUT = 5,
  GMM_X0 = 6,
  GMM_HISTORY_0 = 7, /* to 10 */
  GMM_GUIDANCE = 11,
  GMM_SIGMA = 12,
  GMM_OFFSET = 13,
  GMM_EPS_SAMPLE = 14,
  GMM_EPS_OUTPUT = 15
} gmm_column;

/* Columns of a training row. With x0 the data, e1 the noise in the training sample x_t, e2 fresh noise and o the
 * model's output; terms whose EPS_SAMPLE, SKIP_FRESH or SKIP_WEIGHT is 0 are absent:
 *   x_t  = SIGNAL x0 + NOISE e1
 *   eps  = EPS_OUTPUT o + EPS_SAMPLE x_t
 *   loss = mean(WEIGHT (e1 - eps)^2 + SKIP_WEIGHT (SKIP_NOISE e1 + SKIP_FRESH e2 - SKIP_SCALE eps)^2)
 */
typedef enum gmm_training_column {
  GMM_TRAINING_SIGNAL = 0,
  GMM_TRAINING_NOISE = 1,
  GMM_TRAINING_EPS_SAMPLE = 2,
  GMM_TRAINING_EPS_OUTPUT = 3,
  GMM_TRAINING_WEIGHT = 4,
  GMM_TRAINING_SKIP_WEIGHT = 5,
  GMM_TRAINING_SKIP_SCALE = 6,
  GMM_TRAINING_SKIP_NOISE = 7,
  GMM_TRAINING_SKIP_FRESH = 8
} gmm_training_column;

/* Purpose of a random draw, the last word of the Philox counter. */
typedef enum gmm_stream {
  GMM_STREAM_TRANSITION = 0,
  GMM_STREAM_COMPONENT = 1,
  GMM_STREAM_INITIAL = 2,
  GMM_STREAM_TRAINING = 3,
  GMM_STREAM_TRAINING_SKIP = 4,
  GMM_STREAM_OFFSETS = 5
} gmm_stream;

typedef enum gmm_prediction {
  GMM_PREDICTION_NONE = 0,
  GMM_PREDICTION_X0 = 1,
  GMM_PREDICTION_EPSILON = 2,
  GMM_PREDICTION_MODEL_OUTPUT = 3,
  GMM_PREDICTION_MEAN = 4 /* before offset and noise */
} gmm_prediction;

typedef struct gmm_input {
  const void* data; /* NULL: absent */
  int64_t batch_stride;
  int32_t dtype; /* gmm_dtype */
} gmm_input;

typedef struct gmm_output {
  void* data; /* NULL: not wanted */
  int64_t batch_stride;
  int32_t dtype;
} gmm_output;

/* An index for each sample (stride 1), or one for all: read from memory (stride 0), or, where data is NULL, `value`. */
typedef struct gmm_index {
  const int64_t* data;
  int64_t stride;
  int64_t value;
} gmm_index;

/* A mixture bound to the coefficient rows. Tables with one row serve every step; otherwise they have as many rows as
 * the coefficient table. Offsets and std have the coefficients' type: float32, or float64 for float64 samples. */
typedef struct gmm_mixture {
  int64_t components; /* K, 1 to GMM_MAX_COMPONENTS; 0: no mixture, and the rest is not read */
  const int64_t* cdf; /* [cdf_rows][K - 1], floor(2^32 cdf), ascending */
  int64_t cdf_rows;
  const void* offsets; /* [offset_rows][K][elements] */
  int64_t offset_rows;
  const void* std; /* [std_rows][std_components][std_elements]; elements from std_elements on have the row's sigma */
  int64_t std_rows;
  int64_t std_components; /* 1 or K */
  int64_t std_elements;   /* 0 to elements */
} gmm_mixture;

typedef struct gmm_step_arguments {
  int64_t batch;
  int64_t elements;
  gmm_input sample;
  gmm_input model_output;        /* float32 or the sample's type; float16 or bfloat16 beside a float32 sample */
  gmm_input model_output_uncond; /* optional: the unconditional half of a guidance pair */
  gmm_input history[GMM_MAX_HISTORY];
  /* The sample's type. It may be exactly the memory of a sample, model output or history, but overlap no input else. */
  gmm_output result;
  gmm_output prediction; /* the sample's type; optional, kind below */
  int32_t prediction_kind;
  int64_t* components;      /* [batch], optional: the component drawn for each sample */
  const void* coefficients; /* [coefficient_rows][GMM_ROW_COLUMNS], float32; float64 for float64 samples */
  int64_t coefficient_rows;
  gmm_index row;        /* which coefficient row each sample takes */
  gmm_index step;       /* step of the noise counter, 0 to 2^32 - 1 */
  const int64_t* seeds; /* [batch] */
  /* Which element of the noise is each sample's first: not 0 where it is a shard of a larger one. Without a mixture. */
  gmm_index first_element;
  gmm_mixture mixture;
  /* Optional, without a mixture: [batch], the log-densities of what is written to result, which then may not be an
   * input's memory; and room for [batch][GMM_SUM_ENTRIES(elements)] numbers. Of the coefficients' type. */
  void* log_prob;
  void* workspace;
} gmm_step_arguments;

/* The sums of tiles of 1024 elements, and their sum. */
#define GMM_SUM_ENTRIES(elements) (((elements) + 1023) / 1024 + 1)

/* Gradients of a loss with respect to what a step read, from those with respect to what it wrote. Noise and component
 * are drawn again from the seed. Everything that is wanted is written: zeros where no sample used a table's entry. */
typedef struct gmm_step_backward_arguments {
  gmm_step_arguments step;   /* as given to the step; result, prediction and components are not looked at */
  gmm_input grad_result;     /* the sample's type, as all but the tables */
  gmm_input grad_prediction; /* optional: of the prediction that step.prediction_kind names */
  /* Optional, each of the type of the tensor it belongs to; none may overlap another or an input. */
  gmm_output grad_sample;
  gmm_output grad_model_output;
  gmm_output grad_model_output_uncond;
  gmm_output grad_history[GMM_MAX_HISTORY];
  /* Optional, of the tables' type and shape: sums over the samples that used an entry, in the order of the batch. */
  void* grad_coefficients;
  void* grad_offsets;
  void* grad_std;
  /* With grad_coefficients: [batch][GMM_SUM_ENTRIES(elements)][GMM_ROW_COLUMNS] numbers of the tables' type. */
  void* workspace;
} gmm_step_backward_arguments;

/* Log-densities of transitions: of prev_sample, given what a step reads, under the whole mixture. NaN where a standard
 * deviation is 0: there is no density. */
typedef struct gmm_log_prob_arguments {
  gmm_step_arguments step; /* its inputs but seeds, step and cdf, which are not looked at */
  gmm_input prev_sample;   /* the sample's type */
  const void* weights;     /* [weight_rows][K], with a mixture, positive, of the tables' type, like the results */
  int64_t weight_rows;     /* 1, or as many as the coefficients */
  void* log_prob;          /* [batch]; NULL, without a mixture: only the tiles' sums are made, in workspace */
  void* responsibilities;  /* [batch][K], each component's share of the density; optional */
  void* energies;          /* [batch][K], how much less than without offset each component's density is; optional */
  const void* penalties;   /* [batch][K], how much less still it is to be; optional */
  void* workspace;         /* [batch][GMM_SUM_ENTRIES(elements)][K + 1] numbers of the tables' type */
} gmm_log_prob_arguments;

typedef struct gmm_log_prob_backward_arguments {
  /* As given; responsibilities are read; log_prob, energies, penalties and workspace are not looked at. Where penalties
   * depend on the energies, minus the derivatives with respect to these stand for the responsibilities. */
  gmm_log_prob_arguments of;
  const void* grad_log_prob;             /* [batch], or [batch][tiles], of the tables' type */
  int32_t of_tiles;                      /* whether gradients are of the tiles' shares; not with a mixture */
  gmm_output grad_prev_sample;           /* optional, the sample's type */
  void* grad_weights;                    /* optional, [weight_rows][K] */
  gmm_step_backward_arguments gradients; /* its outputs and workspace; the rest is not looked at */
} gmm_log_prob_backward_arguments;

/* How the density of prev_sample changes with the model's output: log p(new) - log p(old), and the divergence
 * KL(new || old) of the transitions, from the difference of the outputs. NaN where sigma is 0: there is no density. */
typedef struct gmm_log_ratio_arguments {
  gmm_step_arguments step; /* as a log-density reads it, with the new outputs; without a mixture */
  gmm_input prev_sample;   /* the sample's type */
  gmm_input old_model_output;
  gmm_input old_model_output_uncond; /* where there is a guidance pair */
  void* result;    /* [batch][2], of the tables' type; NULL: the tiles' sums are all that is made, in workspace */
  void* workspace; /* [batch][GMM_SUM_ENTRIES(elements)][2] numbers of that type */
} gmm_log_ratio_arguments;

typedef struct gmm_log_ratio_backward_arguments {
  gmm_log_ratio_arguments of; /* as given; result and workspace are not looked at */
  const void* grad;           /* [batch][2], or [batch][tiles][2], of the tables' type */
  int32_t of_tiles;           /* whether gradients are of the tiles' shares */
  /* Optional, each of the type of the tensor it belongs to; none may overlap another or an input. */
  gmm_output grad_sample;
  gmm_output grad_model_output;
  gmm_output grad_old_model_output;
  gmm_output grad_prev_sample;
  gmm_output grad_model_output_uncond;
  gmm_output grad_old_model_output_uncond;
  gmm_output grad_history[GMM_MAX_HISTORY];
} gmm_log_ratio_backward_arguments;

/* A batch in training: the row of each sample, and what its noise comes from. */
typedef struct gmm_training {
  int64_t batch;
  int64_t elements;
  const void* coefficients; /* [coefficient_rows][GMM_TRAINING_COLUMNS], float32; float64 for float64 samples */
  int64_t coefficient_rows;
  gmm_index row;        /* which row each sample takes: its timestep */
  gmm_index step;       /* step of the noise counter, 0 to 2^32 - 1 */
  const int64_t* seeds; /* [batch] */
} gmm_training;

typedef struct gmm_add_noise_arguments {
  gmm_training training;
  gmm_input sample;        /* x0 */
  gmm_output result;       /* x_t, of the sample's type; it may be exactly the sample's memory */
  gmm_output noise;        /* e1, of the sample's type; optional */
  gmm_index first_element; /* as a step has it */
} gmm_add_noise_arguments;

/* Losses, with the noise that was added drawn again. */
typedef struct gmm_skip_loss_arguments {
  gmm_training training; /* float64 where model_output is */
  gmm_input model_output;
  gmm_input sample; /* x_t, float32 or model_output's type, or float16 or bfloat16 beside float32; optional where no row
                       reads it (elsewhere than in the host's memory: the loss is NaN where one does) */
  gmm_output residual; /* optional, where model_output has the coefficients' type, and of that type: WEIGHT (e1 - eps)
                      + SKIP_WEIGHT SKIP_SCALE (SKIP_NOISE e1 + SKIP_FRESH e2 - SKIP_SCALE eps), which times
                      -2 EPS_OUTPUT / elements is the gradient of the loss */
  void* loss;          /* [batch], of the coefficients' type */
  void* workspace;     /* [batch][GMM_SUM_ENTRIES(elements)] numbers of that type */
} gmm_skip_loss_arguments;

/* The gradient of the model's output from the residual, in the residual's memory: what gmm_skip_loss_backward_arguments
 * gives.
 */
typedef struct gmm_scale_residual_arguments {
  gmm_training training; /* its seeds are not looked at */
  gmm_output residual;   /* as the loss wrote it */
  const void* grad_loss; /* [batch], of the coefficients' type */
} gmm_scale_residual_arguments;

typedef struct gmm_skip_loss_backward_arguments {
  gmm_skip_loss_arguments of; /* as given; residual, loss and workspace are not looked at */
  const void* grad_loss;      /* [batch], of the coefficients' type */
  /* Optional, each of the type of the tensor it belongs to. */
  gmm_output grad_model_output;
  gmm_output grad_sample;
} gmm_skip_loss_backward_arguments;

typedef struct gmm_normal_arguments {
  int64_t batch;
  int64_t elements;
  gmm_output result;
  const int64_t* seeds;
  gmm_index step;
  int32_t stream;          /* gmm_stream */
  gmm_index first_element; /* as a step has it */
} gmm_normal_arguments;

typedef struct gmm_component_arguments {
  int64_t batch;
  int64_t* result;
  const int64_t* seeds;
  gmm_index row; /* which row of cdf each sample takes (not read where there is one row) */
  gmm_index step;
  int64_t components;
  const int64_t* cdf;
  int64_t cdf_rows;
} gmm_component_arguments;

/* Projections: result[b][k] is the sum over the elements of sample b times row k of a table. */
typedef struct gmm_project_arguments {
  int64_t batch;
  int64_t elements;
  gmm_input sample;  /* float32 or float64, as are the table, the result and the workspace */
  int64_t columns;   /* 1 to GMM_MAX_COMPONENTS */
  const void* table; /* [table_rows][columns][elements] */
  int64_t table_rows;
  gmm_index row;   /* which entry of the table each sample takes (not read where there is one) */
  void* result;    /* [batch][columns] */
  void* workspace; /* [batch][GMM_SUM_ENTRIES(elements)][columns] */
} gmm_project_arguments;

typedef enum gmm_instruction_set {
  GMM_BEST = 0, /* the fastest that this processor has */
  GMM_PORTABLE = 1,
  GMM_AVX2 = 2,
  GMM_AVX512 = 3
} gmm_instruction_set;

typedef struct gmm_cpu_options {
  int32_t threads;         /* at least 1; never changes a bit of the result */
  int32_t instruction_set; /* gmm_instruction_set; never changes a bit of the result */
} gmm_cpu_options;

GMM_API int gmm_cpu_step(const gmm_step_arguments* arguments, const gmm_cpu_options* options);
GMM_API int gmm_cpu_step_backward(const gmm_step_backward_arguments* arguments, const gmm_cpu_options* options);
GMM_API int gmm_cpu_log_prob(const gmm_log_prob_arguments* arguments, const gmm_cpu_options* options);
GMM_API int gmm_cpu_log_prob_backward(const gmm_log_prob_backward_arguments* arguments, const gmm_cpu_options* options);
GMM_API int gmm_cpu_log_ratio(const gmm_log_ratio_arguments* arguments, const gmm_cpu_options* options);
GMM_API int gmm_cpu_log_ratio_backward(const gmm_log_ratio_backward_arguments* arguments,
                                       const gmm_cpu_options* options);
GMM_API int gmm_cpu_add_noise(const gmm_add_noise_arguments* arguments, const gmm_cpu_options* options);
GMM_API int gmm_cpu_skip_loss(const gmm_skip_loss_arguments* arguments, const gmm_cpu_options* options);
GMM_API int gmm_cpu_scale_residual(const gmm_scale_residual_arguments* arguments, const gmm_cpu_options* options);
GMM_API int gmm_cpu_skip_loss_backward(const gmm_skip_loss_backward_arguments* arguments,
                                       const gmm_cpu_options* options);
GMM_API int gmm_cpu_standard_normal(const gmm_normal_arguments* arguments, const gmm_cpu_options* options);
GMM_API int gmm_cpu_draw_components(const gmm_component_arguments* arguments);
GMM_API int gmm_cpu_project(const gmm_project_arguments* arguments, const gmm_cpu_options* options);

/* Modified Gram-Schmidt of [rows][elements] in a fixed order of operations: the same bits on every machine. Rows that
 * turn out to be linearly dependent or not finite are GMM_INVALID_ARGUMENT, found with the rows before them written. */
GMM_API int gmm_cpu_orthonormalize(double* rows, int64_t row_count, int64_t elements, const gmm_cpu_options* options);

/* The instruction set that GMM_BEST stands for here. */
GMM_API int gmm_cpu_best_instruction_set(void);

/* ---- CUDA: the same on a device's memory, in a library of its own (gmmkernel_cuda) ----
 *
 * One kernel launch on the given stream (gradients: one for each kind that is wanted; in these, for log-densities,
 * losses and projections, one for each level of a sum over elements too), no allocation, no synchronisation:
 * legal while the stream is being captured into a graph. All pointers are to memory that the device can read. Indices
 * in that memory are not checked here: a sample whose row or step is out of range is filled with NaN, its component is
 * -1, its gradients, loss and projections are NaN, and no table's gradients have a part of it.
 */
typedef struct gmm_cuda_options {
  int32_t device;
  void* stream; /* cudaStream_t */
} gmm_cuda_options;

GMM_API int gmm_cuda_step(const gmm_step_arguments* arguments, const gmm_cuda_options* options);
GMM_API int gmm_cuda_step_backward(const gmm_step_backward_arguments* arguments, const gmm_cuda_options* options);
GMM_API int gmm_cuda_log_prob(const gmm_log_prob_arguments* arguments, const gmm_cuda_options* options);
GMM_API int gmm_cuda_log_prob_backward(const gmm_log_prob_backward_arguments* arguments,
                                       const gmm_cuda_options* options);
GMM_API int gmm_cuda_log_ratio(const gmm_log_ratio_arguments* arguments, const gmm_cuda_options* options);
GMM_API int gmm_cuda_log_ratio_backward(const gmm_log_ratio_backward_arguments* arguments,
                                        const gmm_cuda_options* options);
GMM_API int gmm_cuda_add_noise(const gmm_add_noise_arguments* arguments, const gmm_cuda_options* options);
GMM_API int gmm_cuda_skip_loss(const gmm_skip_loss_arguments* arguments, const gmm_cuda_options* options);
GMM_API int gmm_cuda_scale_residual(const gmm_scale_residual_arguments* arguments, const gmm_cuda_options* options);
GMM_API int gmm_cuda_skip_loss_backward(const gmm_skip_loss_backward_arguments* arguments,
                                        const gmm_cuda_options* options);
GMM_API int gmm_cuda_standard_normal(const gmm_normal_arguments* arguments, const gmm_cuda_options* options);
GMM_API int gmm_cuda_draw_components(const gmm_component_arguments* arguments, const gmm_cuda_options* options);
GMM_API int gmm_cuda_project(const gmm_project_arguments* arguments, const gmm_cuda_options* options);

/* The number of devices; GMM_CUDA_ERROR where there is no driver, or none that fits. */
GMM_API int gmm_cuda_device_count(int32_t* count);

GMM_API const char* gmm_version(void);
GMM_API const char* gmm_last_error(void);

#ifdef __cplusplus
}
#endif

#endif
