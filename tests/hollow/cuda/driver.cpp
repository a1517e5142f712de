// libcuda: what pycuda, cuda.bindings and ONNX Runtime ask of the driver. make.py adds a stub that says "not
// supported" for each further function of cuda.h.
#include <cuda.h>
#include <dlfcn.h>

#include <cstring>

#include "hollow.h"

using hollow::Handle;

namespace {

bool initialized = false;

CUresult told(int error) { return static_cast<CUresult>(error); }

int begin(const char* function) {
  hollow::called(function);
  if (hollow::asked_error() && hollow::asked_error() != hollow::kTooOld) return hollow::asked_error();
  return initialized || hollow::primary_is_active() ? 0 : hollow::kNotInitialized;
}

int begin_in_context(const char* function) {
  if (int error = begin(function)) return error;
  return hollow::check_context();
}

void* pointer(CUdeviceptr address) { return reinterpret_cast<void*>(address); }

int fill(CUstream stream, CUdeviceptr to, int value, size_t count, size_t width) {
  return hollow::enqueue(stream, [=] { return hollow::fill_now(pointer(to), value, count, width); });
}

int fill_at_once(CUdeviceptr to, int value, size_t count, size_t width) {
  if (int error = hollow::unsafe()) return error;
  return fill(nullptr, to, value, count, width);
}

int copy_at_once(void* to, const void* from, size_t bytes) {
  if (int error = hollow::unsafe()) return error;
  return hollow::copy(nullptr, to, from, bytes);
}

int take_pinned(void** address, size_t bytes) {
  if (int error = hollow::unsafe()) return error;
  *address = hollow::take_pinned(bytes);
  return *address ? 0 : hollow::kOutOfMemory;
}

}  // namespace

#define CUDA(name, ...) SEEN CUresult CUDAAPI name(__VA_ARGS__)
#define BEGIN \
  if (int error = begin(__func__)) return told(error)
#define BEGIN_IN_CONTEXT \
  if (int error = begin_in_context(__func__)) return told(error)

// The machine
CUDA(cuInit, unsigned) {
  hollow::called(__func__);
  if (hollow::asked_error() && hollow::asked_error() != hollow::kTooOld) return told(hollow::asked_error());
  initialized = true;
  return CUDA_SUCCESS;
}
CUDA(cuDriverGetVersion, int* version) {
  hollow::called(__func__);
  *version = hollow::asked_error() == hollow::kTooOld ? 12020 : CUDA_VERSION;
  return CUDA_SUCCESS;
}
CUDA(cuGetErrorName, CUresult error, const char** text) {
  *text = hollow::error_name(error);
  return CUDA_SUCCESS;
}
CUDA(cuGetErrorString, CUresult error, const char** text) {
  *text = hollow::error_name(error);
  return CUDA_SUCCESS;
}
CUDA(cuDeviceGetCount, int* count) {
  BEGIN;
  *count = 1;
  return CUDA_SUCCESS;
}
CUDA(cuDeviceGet, CUdevice* device, int ordinal) {
  BEGIN;
  *device = 0;
  return told(ordinal == 0 ? 0 : CUDA_ERROR_INVALID_DEVICE);
}
CUDA(cuDeviceGetName, char* name, int size, CUdevice) {
  BEGIN;
  strncpy(name, hollow::kName, size);
  return CUDA_SUCCESS;
}
CUDA(cuDeviceGetAttribute, int* value, CUdevice_attribute number, CUdevice) {
  BEGIN;
  *value = hollow::attribute(number);
  return CUDA_SUCCESS;
}
CUDA(cuDeviceComputeCapability, int* major, int* minor, CUdevice) {
  BEGIN;
  *major = hollow::kMajor;
  *minor = hollow::kMinor;
  return CUDA_SUCCESS;
}
CUDA(cuDeviceTotalMem, size_t* bytes, CUdevice) {
  BEGIN;
  *bytes = hollow::total_memory();
  return CUDA_SUCCESS;
}
CUDA(cuDeviceGetPCIBusId, char* text, int size, CUdevice) {
  BEGIN;
  strncpy(text, "0000:00:00.0", size);
  return CUDA_SUCCESS;
}

// Contexts
CUDA(cuDevicePrimaryCtxRetain, CUcontext* context, CUdevice) {
  BEGIN;
  *context = static_cast<CUcontext>(hollow::primary());
  return told(hollow::retain_primary());
}
CUDA(cuDevicePrimaryCtxRelease, CUdevice) {
  BEGIN;
  return told(hollow::release_primary());
}
CUDA(cuDevicePrimaryCtxGetState, CUdevice, unsigned* flags, int* active) {
  BEGIN;
  *flags = 0;
  *active = hollow::primary_is_active();
  return CUDA_SUCCESS;
}
CUDA(cuDevicePrimaryCtxSetFlags, CUdevice, unsigned) {
  BEGIN;
  return CUDA_SUCCESS;
}
CUDA(cuCtxDetach, CUcontext) {
  BEGIN;
  return CUDA_ERROR_INVALID_CONTEXT;  // a primary context is released instead
}
CUDA(cuCtxPushCurrent, CUcontext context) {
  BEGIN;
  return told(hollow::push_context(context));
}
CUDA(cuCtxPopCurrent, CUcontext* context) {
  BEGIN;
  return told(hollow::pop_context(reinterpret_cast<hollow::Context*>(context)));
}
CUDA(cuCtxSetCurrent, CUcontext context) {
  BEGIN;
  return told(hollow::set_context(context));
}
CUDA(cuCtxGetCurrent, CUcontext* context) {
  BEGIN;
  *context = static_cast<CUcontext>(hollow::current_context());
  return CUDA_SUCCESS;
}
CUDA(cuCtxGetDevice, CUdevice* device) {
  BEGIN_IN_CONTEXT;
  *device = 0;
  return CUDA_SUCCESS;
}
CUDA(cuCtxGetApiVersion, CUcontext, unsigned* version) {
  BEGIN;
  *version = 3020;
  return CUDA_SUCCESS;
}
CUDA(cuCtxSynchronize, ) {
  BEGIN_IN_CONTEXT;
  return told(hollow::unsafe());
}

// Memory
CUDA(cuMemGetInfo, size_t* free, size_t* total) {
  BEGIN_IN_CONTEXT;
  *free = hollow::free_memory();
  *total = hollow::total_memory();
  return CUDA_SUCCESS;
}
CUDA(cuMemAlloc, CUdeviceptr* address, size_t bytes) {
  BEGIN_IN_CONTEXT;
  if (!bytes) return CUDA_ERROR_INVALID_VALUE;
  if (int error = hollow::unsafe()) return told(error);
  *address = reinterpret_cast<CUdeviceptr>(hollow::take(bytes));
  return told(*address ? 0 : hollow::kOutOfMemory);
}
CUDA(cuMemFree, CUdeviceptr address) {
  BEGIN_IN_CONTEXT;
  if (int error = hollow::unsafe()) return told(error);
  return told(hollow::give(pointer(address)));
}
CUDA(cuMemGetAddressRange, CUdeviceptr* base, size_t* bytes, CUdeviceptr address) {
  BEGIN_IN_CONTEXT;
  return told(hollow::block_of(pointer(address), reinterpret_cast<void**>(base), bytes) ? 0 : hollow::kInvalidValue);
}
CUDA(cuMemAllocHost, void** address, size_t bytes) {
  BEGIN_IN_CONTEXT;
  return told(take_pinned(address, bytes));
}
CUDA(cuMemHostAlloc, void** address, size_t bytes, unsigned) {
  BEGIN_IN_CONTEXT;
  return told(take_pinned(address, bytes));
}
CUDA(cuMemFreeHost, void* address) {
  BEGIN_IN_CONTEXT;
  if (int error = hollow::unsafe()) return told(error);
  return told(hollow::give_pinned(address));
}
CUDA(cuMemHostRegister, void* address, size_t bytes, unsigned) {
  BEGIN_IN_CONTEXT;
  return told(hollow::pin(address, bytes));
}
CUDA(cuMemHostUnregister, void* address) {
  BEGIN_IN_CONTEXT;
  return told(hollow::unpin(address));
}
CUDA(cuMemHostGetDevicePointer, CUdeviceptr* address, void* host, unsigned) {
  BEGIN_IN_CONTEXT;
  *address = reinterpret_cast<CUdeviceptr>(host);
  return told(hollow::place(host) == hollow::Place::pinned ? 0 : hollow::kInvalidValue);
}

// Copies
CUDA(cuMemcpyHtoD, CUdeviceptr to, const void* from, size_t bytes) {
  BEGIN_IN_CONTEXT;
  return told(copy_at_once(pointer(to), from, bytes));
}
CUDA(cuMemcpyDtoH, void* to, CUdeviceptr from, size_t bytes) {
  BEGIN_IN_CONTEXT;
  return told(copy_at_once(to, pointer(from), bytes));
}
CUDA(cuMemcpyDtoD, CUdeviceptr to, CUdeviceptr from, size_t bytes) {
  BEGIN_IN_CONTEXT;
  return told(copy_at_once(pointer(to), pointer(from), bytes));
}
CUDA(cuMemcpyHtoDAsync, CUdeviceptr to, const void* from, size_t bytes, CUstream stream) {
  BEGIN_IN_CONTEXT;
  return told(hollow::copy(stream, pointer(to), from, bytes));
}
CUDA(cuMemcpyDtoHAsync, void* to, CUdeviceptr from, size_t bytes, CUstream stream) {
  BEGIN_IN_CONTEXT;
  return told(hollow::copy(stream, to, pointer(from), bytes));
}
CUDA(cuMemcpyDtoDAsync, CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  BEGIN_IN_CONTEXT;
  return told(hollow::copy(stream, pointer(to), pointer(from), bytes));
}
CUDA(cuMemcpyAsync, CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream stream) {
  BEGIN_IN_CONTEXT;
  return told(hollow::copy(stream, pointer(to), pointer(from), bytes));
}
CUDA(cuMemsetD8, CUdeviceptr to, unsigned char value, size_t count) {
  BEGIN_IN_CONTEXT;
  return told(fill_at_once(to, value, count, 1));
}
CUDA(cuMemsetD32, CUdeviceptr to, unsigned value, size_t count) {
  BEGIN_IN_CONTEXT;
  return told(fill_at_once(to, value, count, 4));
}
CUDA(cuMemsetD8Async, CUdeviceptr to, unsigned char value, size_t count, CUstream stream) {
  BEGIN_IN_CONTEXT;
  return told(fill(stream, to, value, count, 1));
}
CUDA(cuMemsetD32Async, CUdeviceptr to, unsigned value, size_t count, CUstream stream) {
  BEGIN_IN_CONTEXT;
  return told(fill(stream, to, value, count, 4));
}

// Streams and events
CUDA(cuStreamCreate, CUstream* stream, unsigned) {
  BEGIN_IN_CONTEXT;
  *stream = static_cast<CUstream>(hollow::new_stream());
  return CUDA_SUCCESS;
}
CUDA(cuStreamCreateWithPriority, CUstream* stream, unsigned, int) {
  BEGIN_IN_CONTEXT;
  *stream = static_cast<CUstream>(hollow::new_stream());
  return CUDA_SUCCESS;
}
CUDA(cuStreamDestroy, CUstream stream) {
  BEGIN_IN_CONTEXT;
  return told(hollow::drop_stream(stream));
}
CUDA(cuStreamSynchronize, CUstream stream) {
  BEGIN_IN_CONTEXT;
  return told(hollow::synchronize(stream));
}
CUDA(cuStreamQuery, CUstream stream) {
  BEGIN_IN_CONTEXT;
  return told(hollow::synchronize(stream));
}
CUDA(cuStreamWaitEvent, CUstream stream, CUevent event, unsigned) {
  BEGIN_IN_CONTEXT;
  return told(hollow::wait(stream, event));
}
CUDA(cuEventCreate, CUevent* event, unsigned) {
  BEGIN_IN_CONTEXT;
  *event = static_cast<CUevent>(hollow::new_event());
  return CUDA_SUCCESS;
}
CUDA(cuEventDestroy, CUevent event) {
  BEGIN_IN_CONTEXT;
  return told(hollow::drop_event(event));
}
CUDA(cuEventRecord, CUevent event, CUstream stream) {
  BEGIN_IN_CONTEXT;
  return told(hollow::record(event, stream));
}
CUDA(cuEventSynchronize, CUevent event) {
  BEGIN_IN_CONTEXT;
  return told(hollow::is_event(event) ? hollow::unsafe() : hollow::kInvalidHandle);
}
CUDA(cuEventQuery, CUevent event) {
  BEGIN_IN_CONTEXT;
  return told(hollow::is_event(event) ? hollow::unsafe() : hollow::kInvalidHandle);
}
CUDA(cuEventElapsedTime, float* milliseconds, CUevent, CUevent) {
  BEGIN_IN_CONTEXT;
  *milliseconds = 0.01f;
  return CUDA_SUCCESS;
}

// Graphs
CUDA(cuStreamBeginCapture, CUstream stream, CUstreamCaptureMode mode) {
  BEGIN_IN_CONTEXT;
  return told(hollow::begin_capture(stream, mode));
}
CUDA(cuStreamEndCapture, CUstream stream, CUgraph* graph) {
  BEGIN_IN_CONTEXT;
  return told(hollow::end_capture(stream, reinterpret_cast<Handle*>(graph)));
}
CUDA(cuStreamIsCapturing, CUstream stream, CUstreamCaptureStatus* status) {
  BEGIN_IN_CONTEXT;
  return told(hollow::capture_status(stream, reinterpret_cast<int*>(status)));
}
CUDA(cuGraphInstantiateWithFlags, CUgraphExec* executable, CUgraph graph, unsigned long long) {
  BEGIN_IN_CONTEXT;
  return told(hollow::instantiate(graph, reinterpret_cast<Handle*>(executable)));
}
CUDA(cuGraphLaunch, CUgraphExec executable, CUstream stream) {
  BEGIN_IN_CONTEXT;
  return told(hollow::launch_graph(executable, stream));
}
CUDA(cuGraphDestroy, CUgraph graph) {
  BEGIN_IN_CONTEXT;
  return told(hollow::drop_graph(graph));
}
CUDA(cuGraphExecDestroy, CUgraphExec executable) {
  BEGIN_IN_CONTEXT;
  return told(hollow::drop_executable(executable));
}

CUDA(cuTensorMapEncodeTiled, CUtensorMap* map, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
     const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
     CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  BEGIN;
  memset(map, 0, sizeof *map);
  return CUDA_SUCCESS;
}

// Kernels that the provider carries as data
CUDA(cuModuleLoadData, CUmodule* module, const void*) {
  BEGIN_IN_CONTEXT;
  *module = reinterpret_cast<CUmodule>(new char);
  return CUDA_SUCCESS;
}
CUDA(cuModuleUnload, CUmodule module) {
  BEGIN_IN_CONTEXT;
  delete reinterpret_cast<char*>(module);
  return CUDA_SUCCESS;
}
CUDA(cuModuleGetFunction, CUfunction* function, CUmodule, const char* name) {
  BEGIN_IN_CONTEXT;
  *function = reinterpret_cast<CUfunction>(new char);  // kept: a name for as long as the process lives
  hollow::name_kernel(*function, name);
  return CUDA_SUCCESS;
}
CUDA(cuFuncSetAttribute, CUfunction, CUfunction_attribute, int) {
  BEGIN_IN_CONTEXT;
  return CUDA_SUCCESS;
}
CUDA(cuFuncSetCacheConfig, CUfunction, CUfunc_cache) {
  BEGIN_IN_CONTEXT;
  return CUDA_SUCCESS;
}
CUDA(cuLaunchKernel, CUfunction function, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
     CUstream stream, void**, void**) {
  BEGIN_IN_CONTEXT;
  return told(hollow::launch(stream, hollow::kernel_name(function)));
}

// Where a function is: by the name without its version, as cuda.h has it now (symbols.h is written by make.py).
struct Symbol {
  const char *name, *symbol;
};
static const Symbol symbols[] = {
#include "symbols.h"
};

SEEN CUresult cuGetProcAddress_v2(const char* name, void** function, int, cuuint64_t,
                                  CUdriverProcAddressQueryResult* found) {
  const char* wanted = name;
  for (const Symbol& entry : symbols)
    if (!strcmp(entry.name, name)) wanted = entry.symbol;
  Dl_info self;
  dladdr(reinterpret_cast<void*>(&cuInit), &self);
  void* library = dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD);
  *function = library ? dlsym(library, wanted) : nullptr;
  if (found) *found = *function ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return told(*function ? 0 : hollow::kNotFound);
}
