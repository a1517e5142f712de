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

// The backend's descriptors are plans and their parts. Heuristics offer two engines: one on tensor cores, one not; a
// plan's launch says which of them the caller took.
struct Descriptor {
  bool on_tensor_cores;
};
constexpr int kNotesType = 11, kDescriptorType = 15, kBehaviorType = 19;              // cudnnBackendAttributeType_t
constexpr int kResults = 202, kEngine = 300, kPlanConfiguration = 401, kNotes = 1303;  // cudnnBackendAttributeName_t
constexpr int kTensorCore = 0;                                                         // cudnnBackendNumericalNote_t

SEEN int cudnnBackendCreateDescriptor(int, Descriptor** made) {
  hollow::called(__func__);
  *made = new Descriptor{false};
  return hollow::kOk;
}
SEEN int cudnnBackendDestroyDescriptor(Descriptor* descriptor) {
  hollow::called(__func__);
  delete descriptor;
  return hollow::kOk;
}
SEEN int cudnnBackendSetAttribute(Descriptor* plan, int name, int, int64_t, Descriptor** configuration) {
  hollow::called(__func__);
  if (name == kPlanConfiguration) plan->on_tensor_cores = (*configuration)->on_tensor_cores;
  return hollow::kOk;
}
SEEN int cudnnBackendGetAttribute(Descriptor* of, int name, int type, int64_t asked, int64_t* count, void* array) {
  hollow::called(__func__);
  auto descriptors = static_cast<Descriptor**>(array);
  int64_t found = 1;
  if (name == kResults) {
    found = array && asked < 2 ? asked : 2;
    for (int64_t i = 0; array && i < found; i++) descriptors[i]->on_tensor_cores = i == 0;
  } else if (name == kEngine) {
    if (array) descriptors[0]->on_tensor_cores = of->on_tensor_cores;
  } else if (name == kNotes || type == kNotesType) {
    found = of->on_tensor_cores;
    if (array && found) *static_cast<int*>(array) = kTensorCore;
  } else if (type == kBehaviorType) {
    found = 0;
  } else if (array && asked > 0 && type != kDescriptorType) {
    memset(array, 0, 4);  // the workspace's size, and other figures
  }
  if (count) *count = found;
  return hollow::kOk;
}
SEEN int cudnnBackendExecute(LibraryHandle* handle, Descriptor* plan, void*) {
  hollow::called(__func__);
  const char* suffix = plan->on_tensor_cores ? " on tensor cores" : "";
  return hollow::launch(handle->stream, std::string(__func__) + suffix);
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
