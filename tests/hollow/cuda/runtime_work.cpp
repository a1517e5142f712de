// libcudart: streams, events, graphs and kernels.
#include <dlfcn.h>

#include <cstring>
#include <vector>

#include "runtime.h"

using hollow::Handle;

namespace {

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<Configuration> configurations;

template <class Type>
int make(Type* handle, Handle made) {
  if (!handle) return hollow::kInvalidValue;
  *handle = static_cast<Type>(made);
  return 0;
}

}  // namespace

// Streams and events
CUDA(cudaStreamCreate, cudaStream_t* stream) {
  BEGIN;
  return told(make(stream, hollow::new_stream()));
}
CUDA(cudaStreamCreateWithFlags, cudaStream_t* stream, unsigned) {
  BEGIN;
  return told(make(stream, hollow::new_stream()));
}
CUDA(cudaStreamCreateWithPriority, cudaStream_t* stream, unsigned, int) {
  BEGIN;
  return told(make(stream, hollow::new_stream()));
}
CUDA(cudaStreamDestroy, cudaStream_t stream) {
  BEGIN;
  return told(hollow::drop_stream(stream));
}
CUDA(cudaStreamSynchronize, cudaStream_t stream) {
  BEGIN;
  return told(hollow::synchronize(stream));
}
CUDA(cudaStreamWaitEvent, cudaStream_t stream, cudaEvent_t event, unsigned) {
  BEGIN;
  return told(hollow::wait(stream, event));
}
CUDA(cudaEventCreate, cudaEvent_t* event) {
  BEGIN;
  return told(make(event, hollow::new_event()));
}
CUDA(cudaEventCreateWithFlags, cudaEvent_t* event, unsigned) {
  BEGIN;
  return told(make(event, hollow::new_event()));
}
CUDA(cudaEventDestroy, cudaEvent_t event) {
  BEGIN;
  return told(hollow::drop_event(event));
}
CUDA(cudaEventRecord, cudaEvent_t event, cudaStream_t stream) {
  BEGIN;
  return told(hollow::record(event, stream));
}
CUDA(cudaEventRecordWithFlags, cudaEvent_t event, cudaStream_t stream, unsigned) {
  BEGIN;
  return told(hollow::record(event, stream));
}
CUDA(cudaEventSynchronize, cudaEvent_t event) {
  BEGIN;
  return told(hollow::is_event(event) ? hollow::unsafe() : hollow::kInvalidHandle);
}
CUDA(cudaEventQuery, cudaEvent_t event) {
  BEGIN;
  return told(hollow::is_event(event) ? hollow::unsafe() : hollow::kInvalidHandle);
}
CUDA(cudaEventElapsedTime, float* milliseconds, cudaEvent_t, cudaEvent_t) {
  BEGIN;
  *milliseconds = 0.01f;
  return cudaSuccess;
}
CUDA(cudaLaunchHostFunc, cudaStream_t stream, cudaHostFn_t function, void* argument) {
  BEGIN;
  return told(hollow::enqueue(stream, [=] { return function(argument), 0; }));
}

// Graphs
CUDA(cudaStreamBeginCapture, cudaStream_t stream, cudaStreamCaptureMode mode) {
  BEGIN;
  return told(hollow::begin_capture(stream, mode));
}
CUDA(cudaStreamEndCapture, cudaStream_t stream, cudaGraph_t* graph) {
  BEGIN;
  return told(hollow::end_capture(stream, reinterpret_cast<Handle*>(graph)));
}
CUDA(cudaStreamIsCapturing, cudaStream_t stream, cudaStreamCaptureStatus* status) {
  BEGIN;
  return told(hollow::capture_status(stream, reinterpret_cast<int*>(status)));
}
CUDA(cudaGraphInstantiate, cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  BEGIN;
  return told(hollow::instantiate(graph, reinterpret_cast<Handle*>(executable)));
}
CUDA(cudaGraphLaunch, cudaGraphExec_t executable, cudaStream_t stream) {
  BEGIN;
  return told(hollow::launch_graph(executable, stream));
}
CUDA(cudaGraphDestroy, cudaGraph_t graph) {
  BEGIN;
  return told(hollow::drop_graph(graph));
}
CUDA(cudaGraphExecDestroy, cudaGraphExec_t executable) {
  BEGIN;
  return told(hollow::drop_executable(executable));
}

// Kernels
SEEN void** __cudaRegisterFatBinary(void*) {
  static void* binary;
  return &binary;
}
SEEN void __cudaRegisterFatBinaryEnd(void**) {}
SEEN void __cudaUnregisterFatBinary(void**) {}
SEEN void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
SEEN void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*,
                                 int*) {
  hollow::name_kernel(host, name);
}
SEEN unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, cudaStream_t stream) {
  configurations.push_back({grid, block, shared, stream});
  return 0;
}
SEEN cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  if (configurations.empty()) return told(cudaErrorMissingConfiguration);
  Configuration last = configurations.back();
  configurations.pop_back();
  *grid = last.grid;
  *block = last.block;
  *shared = last.shared;
  *static_cast<cudaStream_t*>(stream) = last.stream;
  return cudaSuccess;
}
SEEN cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
CUDA(__cudaLaunchKernel, cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t stream) {
  BEGIN;
  return told(hollow::launch(stream, hollow::kernel_name(kernel)));
}
CUDA(cudaLaunchKernel, const void* host, dim3, dim3, void**, size_t, cudaStream_t stream) {
  BEGIN;
  return told(hollow::launch(stream, hollow::kernel_name(host)));
}
CUDA(cudaLaunchCooperativeKernel, const void* host, dim3, dim3, void**, size_t, cudaStream_t stream) {
  BEGIN;
  return told(hollow::launch(stream, hollow::kernel_name(host)));
}
CUDA(cudaLaunchKernelExC, const cudaLaunchConfig_t* configuration, const void* host, void**) {
  BEGIN;
  return told(hollow::launch(configuration->stream, hollow::kernel_name(host)));
}
CUDA(cudaFuncGetAttributes, cudaFuncAttributes* found, const void*) {
  BEGIN;
  memset(found, 0, sizeof *found);
  found->maxThreadsPerBlock = hollow::attribute(cudaDevAttrMaxThreadsPerBlock);
  found->maxDynamicSharedSizeBytes = hollow::attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  found->numRegs = 32;
  found->ptxVersion = found->binaryVersion = 10 * hollow::kMajor + hollow::kMinor;
  return cudaSuccess;
}
CUDA(cudaFuncSetAttribute, const void*, cudaFuncAttribute, int) {
  BEGIN;
  return cudaSuccess;
}
CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags, int* blocks, const void*, int, size_t, unsigned) {
  BEGIN;
  *blocks = 1;
  return cudaSuccess;
}
CUDA(cudaLibraryLoadData, cudaLibrary_t* library, const void*, cudaJitOption*, void**, unsigned, cudaLibraryOption*,
     void**, unsigned) {
  BEGIN;
  *library = reinterpret_cast<cudaLibrary_t>(new char);
  return cudaSuccess;
}
CUDA(cudaLibraryUnload, cudaLibrary_t library) {
  BEGIN;
  delete reinterpret_cast<char*>(library);
  return cudaSuccess;
}
CUDA(cudaLibraryGetKernel, cudaKernel_t* kernel, cudaLibrary_t, const char* name) {
  BEGIN;
  *kernel = reinterpret_cast<cudaKernel_t>(new char);  // kept: a name for as long as the process lives
  hollow::name_kernel(*kernel, name);
  return cudaSuccess;
}
CUDA(cudaKernelSetAttributeForDevice, cudaKernel_t, cudaFuncAttribute, int, int) {
  BEGIN;
  return cudaSuccess;
}
CUDA(cudaGetDriverEntryPointByVersion, const char* name, void** function, unsigned, unsigned long long,
     cudaDriverEntryPointQueryResult* found) {
  BEGIN;
  static void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  *function = driver ? dlsym(driver, name) : nullptr;
  if (found) *found = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return told(*function ? 0 : hollow::kNotSupported);
}
