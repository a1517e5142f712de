// libcudart: the machine, its memory, and copies.
#include <cstring>

#include "runtime.h"

namespace {

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
