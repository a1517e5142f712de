// A hollow CUDA: what its libraries share. Memory, streams, events and copies are real, kernels do nothing.
// Error codes are ints: the runtime and the driver number theirs alike.
#pragma once
#include <cstddef>
#include <functional>
#include <string>

#define SEEN extern "C" __attribute__((visibility("default")))

namespace hollow {

constexpr int kOk = 0, kInvalidValue = 1, kOutOfMemory = 2, kNotInitialized = 3, kTooOld = 35, kNoDevice = 100,
              kInvalidContext = 201, kInvalidHandle = 400, kNotFound = 500, kContextDestroyed = 709,
              kNotSupported = 801, kCaptureUnsupported = 900, kCaptureInvalidated = 901, kCaptureUnmatched = 903,
              kCaptureIsolation = 905, kCaptureImplicit = 906;
const char* error_name(int error);

// The card. `asked_error` is HOLLOW_ERROR: what every call returns instead of working, 0 if nothing is asked.
int asked_error();
int attribute(int number);  // a cudaDeviceAttr, which is also a CUdevice_attribute
constexpr const char* kName = "Hollow H100";
constexpr int kMajor = 9, kMinor = 0;
size_t total_memory();  // HOLLOW_MEMORY_MIB, or an H100's

// What is recorded (log.cpp).
void called(const char* function);
void launched(const std::string& kernel);
void name_kernel(const void* handle, const std::string& name);
std::string kernel_name(const void* handle);
void copied(const char* from, const char* to, size_t bytes);
void captured(size_t id, size_t nodes, size_t pageable_copies, int error);
void graph_launched(size_t id);

// Device memory (memory.cpp): a range of addresses that the host cannot touch, as on a real card.
void* take(size_t bytes);  // nullptr where there is no room
int give(void* pointer);
size_t free_memory();
void memory_seen(size_t* now, size_t* peak, size_t* allocations, size_t* frees, bool reset);
void* take_pinned(size_t bytes);
int give_pinned(void* pointer);
int pin(void* pointer, size_t bytes);
int unpin(void* pointer);
enum class Place { host, pinned, device };
Place place(const void* pointer);
bool block_of(const void* pointer, void** base, size_t* bytes);  // of device memory
void may_change();  // a kernel ran
// These check that device memory is allocated, and record the copy; they are what a stream runs.
int copy_now(void* to, const void* from, size_t bytes);
int fill_now(void* to, int value, size_t count, size_t width);

// The primary context (contexts.cpp), and each thread's stack. The runtime uses it by itself.
using Context = void*;
Context primary();
void use_primary();
int retain_primary();
int release_primary();
bool primary_is_active();
int push_context(Context context);
int pop_context(Context* context);
int set_context(Context context);
Context current_context();
int check_context();  // an error where no live context is current

// Streams (streams.cpp). A handle is the API's: nullptr, 1 and 2 are the default streams.
using Handle = void*;
using Node = std::function<int()>;
Handle new_stream();
int drop_stream(Handle stream);
bool is_stream(Handle stream);
Handle new_event();
int drop_event(Handle event);
bool is_event(Handle event);
int record(Handle event, Handle stream);
int wait(Handle stream, Handle event);
int enqueue(Handle stream, const Node& node, bool pageable = false);  // runs it now, or puts it into a graph
int launch(Handle stream, const std::string& kernel);
int copy(Handle stream, void* to, const void* from, size_t bytes);
int unsafe();                   // an error where a call may not be made while a stream is captured
int synchronize(Handle stream);
int begin_capture(Handle stream, int mode);
int end_capture(Handle stream, Handle* graph);
int capture_status(Handle stream, int* status);
int drop_graph(Handle graph);
int instantiate(Handle graph, Handle* executable);
int drop_executable(Handle executable);
int launch_graph(Handle executable, Handle stream);

}  // namespace hollow
