// What the files of libcuda share. Its functions are those that pycuda, cuda.bindings and ONNX Runtime ask for; make.py
// adds a stub that says "not supported" for each further one of cuda.h.
#pragma once
#include <cuda.h>

#include "hollow.h"

inline bool initialized = false;

inline CUresult told(int error) { return static_cast<CUresult>(error); }

inline int begin(const char* function) {
  hollow::called(function);
  if (hollow::asked_error() && hollow::asked_error() != hollow::kTooOld) return hollow::asked_error();
  return initialized || hollow::primary_is_active() ? 0 : hollow::kNotInitialized;
}

inline int begin_in_context(const char* function) {
  if (int error = begin(function)) return error;
  return hollow::check_context();
}

#define CUDA(name, ...) SEEN CUresult CUDAAPI name(__VA_ARGS__)
#define BEGIN \
  if (int error = begin(__func__)) return told(error)
#define BEGIN_IN_CONTEXT \
  if (int error = begin_in_context(__func__)) return told(error)
