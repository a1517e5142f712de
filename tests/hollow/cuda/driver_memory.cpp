// libcuda: the machine, contexts, memory, and copies.
#include <cstring>

#include "driver.h"

namespace {

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
