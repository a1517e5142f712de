// Bodies of the functions that do nothing but be counted; make.py writes a line for each.
#pragma once
#include <cstdlib>

#include "hollow.h"

struct LibraryHandle {  // of cuBLAS, cuBLASLt and cuDNN
  void* stream;
};

// Makes a handle, or a descriptor that nobody reads.
#define CREATE(name)                                             \
  SEEN int name(void** made) {                                   \
    hollow::called(#name);                                       \
    *made = calloc(1, 512);                                      \
    return *made ? hollow::kOk : hollow::kOutOfMemory;           \
  }
#define DESTROY(name)      \
  SEEN int name(void* p) { \
    hollow::called(#name); \
    free(p);               \
    return hollow::kOk;    \
  }
// Would run kernels on the handle's stream.
#define WORK(name)                               \
  SEEN int name(LibraryHandle* handle) {         \
    hollow::called(#name);                       \
    return hollow::launch(handle->stream, #name); \
  }
#define NOTHING(name)      \
  SEEN int name() {        \
    hollow::called(#name); \
    return hollow::kOk;    \
  }
#define NOT_SUPPORTED(name)      \
  SEEN int name() {              \
    hollow::called(#name);       \
    return hollow::kNotSupported; \
  }
