/* The parts of the CUDA runtime that the extension calls: each launch goes to a function that the tests give. */
#include <stddef.h>
#include <string.h>

typedef struct {
  unsigned x, y, z;
} dim3;
typedef int (*launch_function)(const char* kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned threads,
                               void** arguments, size_t shared, void* stream);

enum {
  success = 0,
  invalid_value = 1,
  unknown_kernel = 98,
  most_kernels = 1024,
  multiprocessors_attribute = 16,
  device_count = 2
};

static struct {
  const void* handle;
  const char* name;
} kernels[most_kernels];
static int kernel_count;
static launch_function launch;
static int current_device;
static const int multiprocessors[] = {132, 1}; /* of each device: grids of few samples, and of many */

#define EXPORTED __attribute__((visibility("default")))

EXPORTED void ptx_set_launch(launch_function function) { launch = function; }
EXPORTED int ptx_kernel_count(void) { return kernel_count; }
EXPORTED const char* ptx_kernel_name(int number) { return kernels[number].name; }

void** __cudaRegisterFatBinary(void* binary) {
  static void* handle;
  (void)binary;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void** handle) { (void)handle; }
void __cudaUnregisterFatBinary(void** handle) { (void)handle; }
void __cudaRegisterFunction(void** binary, const char* handle, char* device_function, const char* name, int limit,
                            void* thread, void* block, void* block_size, void* grid, int* warps) {
  (void)binary, (void)device_function, (void)limit, (void)thread, (void)block, (void)block_size, (void)grid,
      (void)warps;
  if (kernel_count == most_kernels) return;
  kernels[kernel_count].handle = handle;
  kernels[kernel_count++].name = name;
}
int __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  (void)grid, (void)block, (void)shared, (void)stream;
  return invalid_value; /* no kernel is launched with <<<>>> */
}
int __cudaGetKernel(const void** kernel, const void* handle) {
  *kernel = handle;
  return success;
}
int cudaLaunchKernel(const void* handle, dim3 grid, dim3 block, void** arguments, size_t shared, void* stream) {
  if (block.y != 1 || block.z != 1) return invalid_value;
  for (int i = 0; i < kernel_count; i++)
    if (kernels[i].handle == handle)
      return launch(kernels[i].name, grid.x, grid.y, grid.z, block.x, arguments, shared, stream);
  return unknown_kernel;
}
int __cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** arguments, size_t shared, void* stream) {
  return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
  if (attribute != multiprocessors_attribute || device < 0 || device >= device_count) return invalid_value;
  *value = multiprocessors[device];
  return success;
}
int cudaGetDevice(int* device) {
  *device = current_device;
  return success;
}
int cudaSetDevice(int device) {
  current_device = device;
  return success;
}
int cudaGetDeviceCount(int* count) {
  *count = device_count;
  return success;
}
const char* cudaGetErrorName(int error) { return error == unknown_kernel ? "unknown kernel" : "failed launch"; }
const char* cudaGetErrorString(int error) { return error == unknown_kernel ? "unknown kernel" : "failed launch"; }
int cudaGetLastError(void) { return success; }
