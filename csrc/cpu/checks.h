// Argument checks of the C interface: the first fault found becomes the thread's error message.
#pragma once

#include "gmmkernel/gmmkernel.h"

namespace gmmkernel {

// Record a printf-style message for gmm_last_error() and return `status`.
int fail(gmm_status status, const char* format, ...) __attribute__((format(printf, 2, 3)));

const char* last_error();

int check(const gmm_step_arguments& arguments);
int check(const gmm_normal_arguments& arguments);
int check(const gmm_component_arguments& arguments);

}  // namespace gmmkernel
