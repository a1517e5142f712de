// Streams, events and graphs. Work runs at once, in the order in which it is enqueued; captured work runs when its
// graph is launched.
#include <atomic>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "hollow.h"

namespace {

using hollow::Handle;

struct Graph {
  size_t id;
  std::vector<hollow::Node> nodes;
};

struct Capture {
  std::shared_ptr<Graph> graph;
  Handle origin;
  int mode, error = hollow::kOk;
  std::thread::id thread;
  size_t pageable_copies = 0;
};

struct Stream {
  std::shared_ptr<Capture> capture;
};

struct Event {
  std::shared_ptr<Capture> capture;  // that its mark belongs to
};

struct Streams {
  std::recursive_mutex mutex;
  std::set<Handle> streams, events, graphs, executables;
  std::vector<std::weak_ptr<Capture>> captures;
  size_t next_graph = 0;
};

Streams& all() {
  static Streams* kept = new Streams;
  return *kept;
}

using Held = std::lock_guard<std::recursive_mutex>;

Stream* find(Handle handle) {
  static Stream* by_default = new Stream;  // never captured
  if (reinterpret_cast<size_t>(handle) <= 2) return by_default;
  return all().streams.count(handle) ? static_cast<Stream*>(handle) : nullptr;
}

template <class Kind>
int drop(std::set<Handle>& set, Handle handle) {
  Held held(all().mutex);
  if (!set.erase(handle)) return hollow::kInvalidHandle;
  delete static_cast<Kind*>(handle);
  return hollow::kOk;
}

template <class Kind>
Handle add(std::set<Handle>& set, Kind* made) {
  Held held(all().mutex);
  set.insert(made);
  return made;
}

using Owner = std::shared_ptr<Graph>;

bool has_open_capture(bool break_them) {
  bool found = false;
  for (auto& weak : all().captures) {
    auto capture = weak.lock();
    if (!capture || capture->mode == 2) continue;                                           // relaxed
    if (capture->mode == 1 && capture->thread != std::this_thread::get_id()) continue;  // thread's own
    found = true;
    if (break_them && !capture->error) capture->error = hollow::kCaptureInvalidated;
  }
  return found;
}

}  // namespace

namespace hollow {

Handle new_stream() { return add(all().streams, new Stream); }
int drop_stream(Handle stream) { return drop<Stream>(all().streams, stream); }
Handle new_event() { return add(all().events, new Event); }
int drop_event(Handle event) { return drop<Event>(all().events, event); }

bool is_stream(Handle stream) {
  Held held(all().mutex);
  return find(stream) != nullptr;
}

bool is_event(Handle event) {
  Held held(all().mutex);
  return all().events.count(event) > 0;
}

int unsafe() {
  Held held(all().mutex);
  return has_open_capture(true) ? kCaptureUnsupported : kOk;
}

int enqueue(Handle handle, const Node& node, bool pageable) {
  {
    Held held(all().mutex);
    Stream* stream = find(handle);
    if (!stream) return kInvalidHandle;
    if (auto capture = stream->capture) {
      if (capture->error) return kCaptureInvalidated;
      capture->graph->nodes.push_back(node);
      capture->pageable_copies += pageable;
      return kOk;
    }
    // The default stream waits for all others, which a captured one cannot grant.
    if (reinterpret_cast<size_t>(handle) <= 1 && has_open_capture(true)) return kCaptureImplicit;
  }
  return node();
}

int launch(Handle stream, const std::string& kernel) {
  return enqueue(stream, [kernel] { return launched(kernel), kOk; });
}

int copy(Handle stream, void* to, const void* from, size_t bytes) {
  bool pageable = place(to) == Place::host || place(from) == Place::host;
  return enqueue(stream, [=] { return copy_now(to, from, bytes); }, pageable);
}

int record(Handle event, Handle handle) {
  Held held(all().mutex);
  Stream* stream = find(handle);
  if (!stream || !all().events.count(event)) return kInvalidHandle;
  static_cast<Event*>(event)->capture = stream->capture;
  return kOk;
}

int wait(Handle handle, Handle event) {
  Held held(all().mutex);
  Stream* stream = find(handle);
  if (!stream || !all().events.count(event)) return kInvalidHandle;
  auto& capture = static_cast<Event*>(event)->capture;
  if (stream->capture && capture != stream->capture) {
    stream->capture->error = kCaptureInvalidated;  // waits for work outside its graph
    return kCaptureIsolation;
  }
  if (capture) stream->capture = capture;  // joins
  return kOk;
}

int synchronize(Handle handle) {
  Held held(all().mutex);
  Stream* stream = find(handle);
  if (!stream) return kInvalidHandle;
  if (!stream->capture) return unsafe();
  stream->capture->error = kCaptureInvalidated;
  return kCaptureUnsupported;
}

int begin_capture(Handle handle, int mode) {
  Held held(all().mutex);
  Stream* stream = find(handle);
  if (!stream) return kInvalidHandle;
  if (reinterpret_cast<size_t>(handle) <= 1) return kCaptureUnsupported;
  if (stream->capture) return kInvalidValue;
  stream->capture = std::make_shared<Capture>();
  stream->capture->graph = std::make_shared<Graph>(Graph{all().next_graph++, {}});
  stream->capture->origin = handle;
  stream->capture->mode = mode;
  stream->capture->thread = std::this_thread::get_id();
  all().captures.push_back(stream->capture);
  return kOk;
}

int end_capture(Handle handle, Handle* graph) {
  Held held(all().mutex);
  Stream* stream = find(handle);
  *graph = nullptr;
  if (!stream) return kInvalidHandle;
  auto capture = stream->capture;
  if (!capture || capture->origin != handle) return kCaptureUnmatched;
  for (Handle other : all().streams)
    if (static_cast<Stream*>(other)->capture == capture) static_cast<Stream*>(other)->capture = nullptr;
  for (Handle event : all().events)
    if (static_cast<Event*>(event)->capture == capture) static_cast<Event*>(event)->capture = nullptr;
  captured(capture->graph->id, capture->graph->nodes.size(), capture->pageable_copies, capture->error);
  if (!capture->error) *graph = add(all().graphs, new Owner(capture->graph));
  return capture->error;
}

int capture_status(Handle handle, int* status) {
  Held held(all().mutex);
  Stream* stream = find(handle);
  if (!stream) return kInvalidHandle;
  if (reinterpret_cast<size_t>(handle) <= 1 && has_open_capture(false)) return kCaptureImplicit;
  *status = !stream->capture ? 0 : stream->capture->error ? 2 : 1;
  return kOk;
}

int drop_graph(Handle graph) { return drop<Owner>(all().graphs, graph); }
int drop_executable(Handle executable) { return drop<Owner>(all().executables, executable); }

int instantiate(Handle graph, Handle* executable) {
  Held held(all().mutex);
  if (!all().graphs.count(graph)) return kInvalidValue;
  *executable = add(all().executables, new Owner(*static_cast<Owner*>(graph)));
  return kOk;
}

int launch_graph(Handle executable, Handle stream) {
  Owner graph;
  {
    Held held(all().mutex);
    if (!all().executables.count(executable)) return kInvalidValue;
    graph = *static_cast<Owner*>(executable);
  }
  return enqueue(stream, [graph] {
    graph_launched(graph->id);
    for (auto& node : graph->nodes)
      if (int error = node()) return error;
    return kOk;
  });
}

}  // namespace hollow
