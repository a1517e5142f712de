// The primary context, which is the only one: a stack for each thread, and how often it is held.
#include <mutex>
#include <vector>

#include "hollow.h"

namespace {

struct Contexts {
  std::mutex mutex;
  char primary;
  int holders = 0;
};

Contexts& all() {
  static Contexts* kept = new Contexts;
  return *kept;
}

thread_local std::vector<hollow::Context> stack;

bool is_live(hollow::Context context) {
  std::lock_guard<std::mutex> held(all().mutex);
  return context == &all().primary && all().holders > 0;
}

}  // namespace

namespace hollow {

Context primary() { return &all().primary; }
Context current_context() { return stack.empty() ? nullptr : stack.back(); }
bool primary_is_active() { return is_live(primary()); }

// The runtime holds the primary context until the process ends.
void use_primary() {
  static const int held = retain_primary();
  (void)held;
  if (!current_context()) set_context(primary());
}

int retain_primary() {
  std::lock_guard<std::mutex> held(all().mutex);
  all().holders++;
  return kOk;
}

int release_primary() {
  std::lock_guard<std::mutex> held(all().mutex);
  if (!all().holders) return kInvalidContext;
  all().holders--;
  return kOk;
}

int push_context(Context context) {
  if (!is_live(context)) return kInvalidContext;
  stack.push_back(context);
  return kOk;
}

int pop_context(Context* context) {
  if (stack.empty()) return kInvalidContext;
  if (context) *context = stack.back();
  stack.pop_back();
  return kOk;
}

int set_context(Context context) {
  if (context && !is_live(context)) return kInvalidContext;
  if (!stack.empty()) stack.pop_back();
  if (context) stack.push_back(context);
  return kOk;
}

int check_context() {
  Context context = current_context();
  return !context ? kInvalidContext : is_live(context) ? kOk : kContextDestroyed;
}

}  // namespace hollow
