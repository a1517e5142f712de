// What the files of libcudart share. Its functions are those that ONNX Runtime's CUDA provider asks for; make.py adds
// a stub that says "not supported" for each further one that the provider names.
#pragma once
#include <cuda_runtime_api.h>

#include "hollow.h"

inline thread_local int last_error = 0;

inline cudaError_t told(int error) {
  if (error) last_error = error;
  return static_cast<cudaError_t>(error);
}

inline int begin(const char* function) {
  hollow::called(function);
  if (int error = hollow::asked_error()) return error;
  hollow::use_primary();
  return 0;
}

#define CUDA(name, ...) SEEN cudaError_t name(__VA_ARGS__)
#define BEGIN \
  if (int error = begin(__func__)) return told(error)
