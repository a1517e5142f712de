// libcudart: what ONNX Runtime's CUDA provider asks of the runtime. make.py adds a stub that says "not supported"
// for each further function that the provider names.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstring>
#include <vector>

#include "hollow.h"

using hollow::Handle;

namespace {

thread_local int last_error = 0;

cudaError_t told(int error) {
  if (error) last_error = error;
  return static_cast<cudaError_t>(error);
}

int begin(const char* function) {
  hollow::called(function);
  if (int error = hollow::asked_error()) return error;
  hollow::use_primary();
  return 0;
}

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

int take(void** pointer, size_t bytes) {
  if (!pointer) return hollow::kInvalidValue;
  if (int error = hollow::unsafe()) return error;
  *pointer = hollow::take(bytes);
  return *pointer ? 0 : hollow::kOutOfMemory;
}

int take_pinned(void** pointer, size_t bytes) {
  if (int error = hollow::unsafe()) return error;
  *pointer = hollow::take_pinned(bytes);
  return *pointer ? 0 : hollow::kOutOfMemory;
}

int fill(cudaStream_t stream, void* to, int value, size_t count) {
  return hollow::enqueue(stream, [=] { return hollow::fill_now(to, value, count, 1); });
}

}  // namespace

#define CUDA(name, ...) SEEN cudaError_t name(__VA_ARGS__)
#define BEGIN \
  if (int error = begin(__func__)) return told(error)

// The machine
CUDA(cudaDriverGetVersion, int* version) {
  hollow::called(__func__);
  *version = hollow::asked_error() == hollow::kTooOld ? 12020 : CUDART_VERSION;
  return cudaSuccess;
}
CUDA(cudaRuntimeGetVersion, int* version) {
  hollow::called(__func__);
  *version = CUDART_VERSION;
  return cudaSuccess;
}
CUDA(cudaGetDeviceCount, int* count) {
  *count = 0;
  BEGIN;
  *count = 1;
  return cudaSuccess;
}
CUDA(cudaGetDevice, int* device) {
  BEGIN;
  *device = 0;
  return cudaSuccess;
}
CUDA(cudaSetDevice, int device) {
  BEGIN;
  return told(device == 0 ? 0 : cudaErrorInvalidDevice);
}
CUDA(cudaDeviceGetAttribute, int* value, cudaDeviceAttr number, int) {
  BEGIN;
  *value = hollow::attribute(number);
  return cudaSuccess;
}
CUDA(cudaGetDeviceProperties, cudaDeviceProp* card, int) {
  BEGIN;
  auto of = [](cudaDeviceAttr number) { return hollow::attribute(number); };
  memset(card, 0, sizeof *card);
  strcpy(card->name, hollow::kName);
  card->major = hollow::kMajor;
  card->minor = hollow::kMinor;
  card->totalGlobalMem = hollow::total_memory();
  card->multiProcessorCount = of(cudaDevAttrMultiProcessorCount);
  card->warpSize = of(cudaDevAttrWarpSize);
  card->maxThreadsPerBlock = of(cudaDevAttrMaxThreadsPerBlock);
  card->maxThreadsPerMultiProcessor = of(cudaDevAttrMaxThreadsPerMultiProcessor);
  card->sharedMemPerBlock = of(cudaDevAttrMaxSharedMemoryPerBlock);
  card->sharedMemPerBlockOptin = of(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  card->sharedMemPerMultiprocessor = of(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  card->regsPerBlock = of(cudaDevAttrMaxRegistersPerBlock);
  card->regsPerMultiprocessor = of(cudaDevAttrMaxRegistersPerMultiprocessor);
  card->totalConstMem = of(cudaDevAttrTotalConstantMemory);
  card->l2CacheSize = of(cudaDevAttrL2CacheSize);
  card->maxThreadsDim[0] = card->maxThreadsDim[1] = of(cudaDevAttrMaxBlockDimX);
  card->maxThreadsDim[2] = of(cudaDevAttrMaxBlockDimZ);
  card->maxGridSize[0] = of(cudaDevAttrMaxGridDimX);
  card->maxGridSize[1] = card->maxGridSize[2] = of(cudaDevAttrMaxGridDimY);
  card->unifiedAddressing = card->cooperativeLaunch = card->canMapHostMemory = card->asyncEngineCount = 1;
  return cudaSuccess;
}
CUDA(cudaDeviceSynchronize, ) {
  BEGIN;
  return told(hollow::unsafe());
}
CUDA(cudaMemGetInfo, size_t* free, size_t* total) {
  BEGIN;
  *free = hollow::free_memory();
  *total = hollow::total_memory();
  return cudaSuccess;
}

// Errors
SEEN const char* cudaGetErrorString(cudaError_t error) { return hollow::error_name(error); }
SEEN const char* cudaGetErrorName(cudaError_t error) { return hollow::error_name(error); }
CUDA(cudaPeekAtLastError, ) { return static_cast<cudaError_t>(last_error); }
CUDA(cudaGetLastError, ) {
  int error = last_error;
  last_error = 0;
  return static_cast<cudaError_t>(error);
}

// Memory
CUDA(cudaMalloc, void** pointer, size_t bytes) {
  BEGIN;
  return told(take(pointer, bytes));
}
CUDA(cudaMallocAsync, void** pointer, size_t bytes, cudaStream_t) {
  BEGIN;
  return told(take(pointer, bytes));
}
CUDA(cudaMallocFromPoolAsync, void** pointer, size_t bytes, cudaMemPool_t, cudaStream_t) {
  BEGIN;
  return told(take(pointer, bytes));
}
CUDA(cudaFree, void* pointer) {
  BEGIN;
  if (int error = hollow::unsafe()) return told(error);
  return told(hollow::give(pointer));
}
CUDA(cudaFreeAsync, void* pointer, cudaStream_t) {
  BEGIN;
  return told(hollow::give(pointer));
}
CUDA(cudaMallocHost, void** pointer, size_t bytes) {
  BEGIN;
  return told(take_pinned(pointer, bytes));
}
CUDA(cudaHostAlloc, void** pointer, size_t bytes, unsigned) {
  BEGIN;
  return told(take_pinned(pointer, bytes));
}
CUDA(cudaFreeHost, void* pointer) {
  BEGIN;
  if (int error = hollow::unsafe()) return told(error);
  return told(hollow::give_pinned(pointer));
}
CUDA(cudaPointerGetAttributes, cudaPointerAttributes* found, const void* pointer) {
  BEGIN;
  auto place = hollow::place(pointer);
  memset(found, 0, sizeof *found);
  found->type = place == hollow::Place::device   ? cudaMemoryTypeDevice
                : place == hollow::Place::pinned ? cudaMemoryTypeHost
                                                 : cudaMemoryTypeUnregistered;
  found->device = place == hollow::Place::host ? -2 : 0;
  if (place != hollow::Place::host) found->devicePointer = const_cast<void*>(pointer);
  if (place != hollow::Place::device) found->hostPointer = const_cast<void*>(pointer);
  return cudaSuccess;
}
CUDA(cudaMemPoolCreate, cudaMemPool_t* pool, const cudaMemPoolProps*) {
  BEGIN;
  *pool = reinterpret_cast<cudaMemPool_t>(new char);
  return cudaSuccess;
}
CUDA(cudaMemPoolDestroy, cudaMemPool_t pool) {
  BEGIN;
  delete reinterpret_cast<char*>(pool);
  return cudaSuccess;
}
CUDA(cudaMemPoolSetAttribute, cudaMemPool_t, cudaMemPoolAttr, void*) {
  BEGIN;
  return cudaSuccess;
}
CUDA(cudaMemPoolGetAttribute, cudaMemPool_t, cudaMemPoolAttr, void* value) {
  BEGIN;
  memset(value, 0, 8);
  return cudaSuccess;
}
CUDA(cudaMemPoolTrimTo, cudaMemPool_t, size_t) {
  BEGIN;
  return cudaSuccess;
}

// Copies
CUDA(cudaMemcpy, void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  BEGIN;
  if (int error = hollow::unsafe()) return told(error);
  return told(hollow::copy(nullptr, to, from, bytes));
}
CUDA(cudaMemcpyAsync, void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  BEGIN;
  return told(hollow::copy(stream, to, from, bytes));
}
CUDA(cudaMemcpy2DAsync, void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
     cudaMemcpyKind, cudaStream_t stream) {
  BEGIN;
  for (size_t row = 0; row < height; row++) {
    char* target = static_cast<char*>(to) + row * to_pitch;
    const char* source = static_cast<const char*>(from) + row * from_pitch;
    if (int error = hollow::copy(stream, target, source, width)) return told(error);
  }
  return cudaSuccess;
}
CUDA(cudaMemcpyFromSymbol, void* to, const void*, size_t bytes, size_t, cudaMemcpyKind) {
  BEGIN;
  return told(hollow::fill_now(to, 0, bytes, 1));  // a kernel would have written it
}
CUDA(cudaMemset, void* to, int value, size_t count) {
  BEGIN;
  if (int error = hollow::unsafe()) return told(error);
  return told(fill(nullptr, to, value, count));
}
CUDA(cudaMemsetAsync, void* to, int value, size_t count, cudaStream_t stream) {
  BEGIN;
  return told(fill(stream, to, value, count));
}

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
