// libcuda: streams, events, graphs, kernels, and where a function is.
#include <dlfcn.h>

#include <cstring>

#include "driver.h"

using hollow::Handle;

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
