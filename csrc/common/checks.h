// Argument checks of the C interface: the first fault found becomes the thread's error message.
#pragma once

#include "gmmkernel/gmmkernel.h"

namespace gmmkernel {

// Record a printf-style message for gmm_last_error() and return `status`.
int fail(gmm_status status, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Where the arguments' pointers lead: indices in a device's memory are not read, a kernel looks at them.
enum class Memory { host, device };

int check(const gmm_step_arguments& arguments, Memory memory);
int check(const gmm_step_backward_arguments& arguments, Memory memory);
int check(const gmm_log_prob_arguments& arguments, Memory memory);
int check(const gmm_log_prob_backward_arguments& arguments, Memory memory);
int check(const gmm_log_ratio_arguments& arguments, Memory memory);
int check(const gmm_log_ratio_backward_arguments& arguments, Memory memory);
int check(const gmm_add_noise_arguments& arguments, Memory memory);
int check(const gmm_skip_loss_arguments& arguments, Memory memory);
int check(const gmm_scale_residual_arguments& arguments, Memory memory);
int check(const gmm_skip_loss_backward_arguments& arguments, Memory memory);
int check(const gmm_normal_arguments& arguments, Memory memory);
int check(const gmm_component_arguments& arguments, Memory memory);
int check(const gmm_project_arguments& arguments, Memory memory);

}  // namespace gmmkernel
