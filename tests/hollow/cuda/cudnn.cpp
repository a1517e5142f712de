// libcudnn: what is more than counted.
#include <cstdint>
#include <cstring>

#include "stubs.h"

SEEN size_t cudnnGetVersion() { return 91900; }
SEEN const char* cudnnGetErrorString(int) { return "hollow"; }
SEEN void cudnnGetLastErrorString(char* text, size_t size) {
  if (size) *text = 0;
}
SEEN int cudnnSetStream(LibraryHandle* handle, void* stream) {
  hollow::called(__func__);
  handle->stream = stream;
  return hollow::is_stream(stream) ? hollow::kOk : hollow::kInvalidValue;
}
SEEN int cudnnGetStream(LibraryHandle* handle, void** stream) {
  *stream = handle->stream;
  return hollow::kOk;
}

// The backend's descriptors are plans and their parts: one engine, whose workspace and other figures are 0.
SEEN int cudnnBackendCreateDescriptor(int, void** made) {
  hollow::called(__func__);
  *made = calloc(1, 512);
  return hollow::kOk;
}
SEEN int cudnnBackendGetAttribute(void*, int, int type, int64_t asked, int64_t* found, void* array) {
  constexpr int kDescriptor = 15;  // CUDNN_TYPE_BACKEND_DESCRIPTOR: the caller made them
  hollow::called(__func__);
  if (found) *found = 1;
  if (array && asked > 0 && type != kDescriptor) memset(array, 0, 4);
  return hollow::kOk;
}

// Convolutions of before the backend: one algorithm, no workspace.
static int one_algorithm(int* found, void* result) {
  constexpr size_t kResultBytes = 48;  // cudnnConvolutionFwdAlgoPerf_t
  memset(result, 0, kResultBytes);
  *found = 1;
  return hollow::kOk;
}
SEEN int cudnnGetConvolutionForwardAlgorithm_v7(void*, void*, void*, void*, void*, int, int* found, void* result) {
  hollow::called(__func__);
  return one_algorithm(found, result);
}
SEEN int cudnnFindConvolutionForwardAlgorithmEx(void*, void*, void*, void*, void*, void*, void*, void*, int, int* found,
                                                void* result) {
  hollow::called(__func__);
  return one_algorithm(found, result);
}
static int bytes(size_t* found, size_t value) {
  *found = value;
  return hollow::kOk;
}
SEEN int cudnnGetConvolutionForwardWorkspaceSize(void*, void*, void*, void*, void*, int, size_t* found) {
  hollow::called(__func__);
  return bytes(found, 0);
}
SEEN int cudnnGetReductionWorkspaceSize(void*, void*, void*, void*, size_t* found) {
  hollow::called(__func__);
  return bytes(found, 256);
}
SEEN int cudnnGetReductionIndicesSize(void*, void*, void*, void*, size_t* found) {
  hollow::called(__func__);
  return bytes(found, 256);
}
