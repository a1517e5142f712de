// libcublas: what is more than counted.
#include "stubs.h"

SEEN int cublasSetStream_v2(LibraryHandle* handle, void* stream) {
  hollow::called(__func__);
  handle->stream = stream;
  return hollow::is_stream(stream) ? hollow::kOk : hollow::kInvalidValue;
}
SEEN int cublasGetMathMode(LibraryHandle*, int* mode) {
  hollow::called(__func__);
  *mode = 0;
  return hollow::kOk;
}
SEEN const char* cublasGetStatusName(int) { return "hollow"; }
SEEN const char* cublasGetStatusString(int) { return "hollow"; }
