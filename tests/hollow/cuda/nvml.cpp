// libnvidia-ml: the sensors of a card that reads the same at any time, and the memory that this process has taken.
// Symbols that are missing are functions that this driver lacks, as far as nvidia-ml-py can tell.
#include <unistd.h>

#include <chrono>
#include <cstring>

#include "hollow.h"

namespace {

constexpr int kNotFound = 6, kInsufficientSize = 7;  // nvmlReturn_t
constexpr unsigned kWatts = 350, kClock = 1755, kMemoryClock = 2619, kCelsius = 45, kPowerCap = 4;
char card;

int begin(const char* function) {
  hollow::called(function);
  return hollow::asked_error() == hollow::kNoDevice ? kNotFound : 0;
}

size_t taken() {
  size_t now, peak, allocations, frees;
  hollow::memory_seen(&now, &peak, &allocations, &frees, false);
  return now;
}

int text(char* to, unsigned size, const char* from) {
  if (strlen(from) >= size) return kInsufficientSize;
  strcpy(to, from);
  return 0;
}

struct Memory {  // nvmlMemory_t
  unsigned long long total, free, used;
};
struct Program {  // nvmlProcessInfo_t
  unsigned pid;
  unsigned long long bytes;
  unsigned gpu_instance, compute_instance;
};
struct Utilization {  // nvmlUtilization_t
  unsigned gpu, memory;
};

}  // namespace

#define NVML(name, ...) SEEN int name(__VA_ARGS__)
#define BEGIN \
  if (int error = begin(__func__)) return error

NVML(nvmlInitWithFlags, unsigned) {
  BEGIN;
  return 0;
}
NVML(nvmlInit_v2, ) {
  BEGIN;
  return 0;
}
NVML(nvmlShutdown, ) { return 0; }
SEEN const char* nvmlErrorString(int) { return "hollow"; }
NVML(nvmlDeviceGetCount_v2, unsigned* count) {
  BEGIN;
  *count = 1;
  return 0;
}
NVML(nvmlDeviceGetHandleByIndex_v2, unsigned, void** device) {
  BEGIN;
  *device = &card;
  return 0;
}
NVML(nvmlDeviceGetHandleByUUID, const char*, void** device) {
  BEGIN;
  *device = &card;
  return 0;
}
NVML(nvmlDeviceGetName, void*, char* name, unsigned size) {
  BEGIN;
  return text(name, size, hollow::kName);
}
NVML(nvmlSystemGetDriverVersion, char* version, unsigned size) {
  BEGIN;
  return text(version, size, hollow::asked_error() == hollow::kTooOld ? "535.0" : "580.0");
}
NVML(nvmlDeviceGetCudaComputeCapability, void*, int* major, int* minor) {
  BEGIN;
  *major = hollow::kMajor;
  *minor = hollow::kMinor;
  return 0;
}
NVML(nvmlDeviceGetMemoryInfo, void*, Memory* memory) {
  BEGIN;
  *memory = {hollow::total_memory(), hollow::total_memory() - taken(), taken()};
  return 0;
}
NVML(nvmlDeviceGetClockInfo, void*, int which, unsigned* megahertz) {
  BEGIN;
  *megahertz = which == 2 ? kMemoryClock : kClock;  // NVML_CLOCK_MEM
  return 0;
}
NVML(nvmlDeviceGetPowerUsage, void*, unsigned* milliwatts) {
  BEGIN;
  *milliwatts = 1000 * kWatts;
  return 0;
}
NVML(nvmlDeviceGetTotalEnergyConsumption, void*, unsigned long long* millijoules) {
  BEGIN;
  auto lived = std::chrono::steady_clock::now().time_since_epoch();
  *millijoules = kWatts * std::chrono::duration_cast<std::chrono::milliseconds>(lived).count();
  return 0;
}
NVML(nvmlDeviceGetTemperature, void*, int, unsigned* celsius) {
  BEGIN;
  *celsius = kCelsius;
  return 0;
}
NVML(nvmlDeviceGetCurrentClocksThrottleReasons, void*, unsigned long long* reasons) {
  BEGIN;
  *reasons = kPowerCap;
  return 0;
}
NVML(nvmlDeviceGetUtilizationRates, void*, Utilization* used) {
  BEGIN;
  *used = {0, 0};
  return 0;
}
NVML(nvmlDeviceGetComputeRunningProcesses_v3, void*, unsigned* count, Program* programs) {
  BEGIN;
  if (!*count || !programs) {
    *count = 1;
    return kInsufficientSize;
  }
  *count = 1;
  *programs = {static_cast<unsigned>(getpid()), taken(), ~0u, ~0u};
  return 0;
}
