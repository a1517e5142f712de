// What the host code did, as JSON: written to the file that HOLLOW_LOG names when the process ends, and on demand.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "hollow.h"

namespace {

struct Captured {
  size_t nodes, pageable_copies, launches;
  int error;
};

struct Log {
  std::mutex mutex;
  std::map<std::string, size_t> calls, kernels;
  std::map<std::tuple<std::string, std::string, size_t>, size_t> copies;
  std::map<size_t, Captured> graphs;
  std::map<const void*, std::string> names;  // of kernels
};

Log& log() {
  static Log* kept = new Log;  // outlives what others do at the end of the process
  return *kept;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + '"';
}

void write_counts(FILE* file, const char* name, const std::map<std::string, size_t>& counts) {
  fprintf(file, "\"%s\": {", name);
  const char* separator = "";
  for (auto& [key, count] : counts) {
    fprintf(file, "%s\n  %s: %zu", separator, quoted(key).c_str(), count);
    separator = ",";
  }
  fprintf(file, "},\n");
}

}  // namespace

namespace hollow {

void called(const char* function) {
  std::lock_guard<std::mutex> held(log().mutex);
  log().calls[function]++;
}

void launched(const std::string& kernel) {
  may_change();
  std::lock_guard<std::mutex> held(log().mutex);
  log().kernels[kernel]++;
}

void name_kernel(const void* handle, const std::string& name) {
  std::lock_guard<std::mutex> held(log().mutex);
  log().names[handle] = name;
}

std::string kernel_name(const void* handle) {
  std::lock_guard<std::mutex> held(log().mutex);
  auto found = log().names.find(handle);
  return found == log().names.end() ? "unknown" : found->second;
}

void copied(const char* from, const char* to, size_t bytes) {
  std::lock_guard<std::mutex> held(log().mutex);
  log().copies[{from, to, bytes}]++;
}

void captured(size_t id, size_t nodes, size_t pageable_copies, int error) {
  std::lock_guard<std::mutex> held(log().mutex);
  log().graphs[id] = {nodes, pageable_copies, 0, error};
}

void graph_launched(size_t id) {
  std::lock_guard<std::mutex> held(log().mutex);
  log().graphs[id].launches++;
}

}  // namespace hollow

SEEN void hollow_reset() {
  std::lock_guard<std::mutex> held(log().mutex);
  log().calls.clear();
  log().kernels.clear();
  log().copies.clear();
  for (auto& [id, graph] : log().graphs) graph.launches = 0;
  hollow::memory_seen(nullptr, nullptr, nullptr, nullptr, true);
}

SEEN int hollow_write(const char* path) {
  std::lock_guard<std::mutex> held(log().mutex);
  FILE* file = fopen(path, "w");
  if (!file) return 1;
  fprintf(file, "{");
  write_counts(file, "calls", log().calls);
  write_counts(file, "kernels", log().kernels);
  fprintf(file, "\"copies\": [");
  const char* separator = "";
  for (auto& [key, times] : log().copies) {
    auto& [from, to, bytes] = key;
    fprintf(file, "%s\n  {\"from\": %s, \"to\": %s, \"bytes\": %zu, \"times\": %zu}", separator,
            quoted(from).c_str(), quoted(to).c_str(), bytes, times);
    separator = ",";
  }
  fprintf(file, "],\n\"graphs\": [");
  separator = "";
  for (auto& [id, graph] : log().graphs) {
    fprintf(file, "%s\n  {\"nodes\": %zu, \"pageable_copies\": %zu, \"launches\": %zu, \"error\": %d}", separator,
            graph.nodes, graph.pageable_copies, graph.launches, graph.error);
    separator = ",";
  }
  size_t now, peak, allocations, frees;
  hollow::memory_seen(&now, &peak, &allocations, &frees, false);
  fprintf(file, "],\n\"memory\": {\"now\": %zu, \"peak\": %zu, \"allocations\": %zu, \"frees\": %zu}}\n", now, peak,
          allocations, frees);
  return fclose(file);
}

__attribute__((destructor)) static void at_the_end() {
  if (const char* path = getenv("HOLLOW_LOG")) hollow_write(path);
}
