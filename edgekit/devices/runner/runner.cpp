// One ExecuTorch model in a process of its own: `runner MODEL.pte THREADS [CPU,CPU...]`, in a folder that holds the
// inputs as raw arrays, input.SAMPLE.N.bin. Requests and answers are those of edgekit/devices/_base.py.
//
// Inside the clock: inputs are handed over, the model runs, its outputs are copied out.

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include <executorch/devtools/etdump/etdump_flatcc.h>
#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor_ptr.h>
#include <executorch/runtime/platform/platform.h>
#include <executorch/runtime/platform/runtime.h>

// The wheel has the pool's library and no header for it.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using executorch::aten::Tensor;
using executorch::etdump::ETDumpGen;
using executorch::extension::make_tensor_ptr;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::Error;
using executorch::runtime::EValue;

constexpr char kTrace[] = "trace.etdp";
constexpr int kWarmups = 3;
// A number that no system call has: the kernel refuses it, an emulator's plugin counts between two of them.
constexpr long kMark = 0x65646765;

// What cannot be done, in a user's words; `code` is the exit code of edgekit.
struct Failure {
  std::string error, hint;
  int code;
};

FILE* answers = nullptr;
std::string first_error;  // of a request: the runtime logs why it fails, and returns a number

void log_message(
    et_timestamp_t, et_pal_log_level_t level, const char*, const char*, size_t, const char* message, size_t) {
  if (level != kError && level != kFatal) return;
  if (first_error.empty()) first_error = message;  // what is logged after the cause is its wake
  fprintf(stderr, "%s\n", message);
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (unsigned char c : text) {
    char escape[8];
    const bool plain = c >= 0x20 && c < 0x7f && c != '"' && c != '\\';
    snprintf(escape, sizeof escape, plain ? "%c" : "\\u%04x", c);
    out += escape;
  }
  return out + "\"";
}

// What to do about an error of ExecuTorch, and edgekit's exit code: 1 where it lies with the device, 2 with the file.
Failure explained(Error error, const std::string& what) {
  char code[16];
  snprintf(code, sizeof code, "0x%02x", static_cast<unsigned>(error));
  std::string text = what + ": ExecuTorch's error " + code + ", ";
  text += executorch::runtime::to_string(error) + strlen("Error::");
  if (!first_error.empty()) text += " (" + first_error + ")";
  switch (error) {
    case Error::OperatorMissing:
      return {text,
              "The runner has ExecuTorch's portable and quantized kernels, and XNNPACK: export the model with "
              "`edgekit export -t executorch`, or register the operator in a runner of your own (--runner PATH).",
              2};
    case Error::NotFound:
      return {text,
              "The model was lowered for a backend that the runner does not have; it has XNNPACK: export the model "
              "with `edgekit export -t executorch`.",
              2};
    case Error::InvalidProgram:
    case Error::InvalidExternalData:
    case Error::DelegateInvalidCompatibility:
      return {text, "The file is damaged, or another version of ExecuTorch made it: copy or export it again.", 2};
    case Error::MemoryAllocationFailed:
    case Error::DelegateMemoryAllocationFailed:
    case Error::OutOfResources:
      return {text, "There is not enough memory: export a smaller model or image size.", 1};
    case Error::Internal:
    case Error::InvalidState:
      return {text, "XNNPACK does not start where /proc/cpuinfo or /sys cannot be read.", 1};
    default:
      return {text, "Check the artifact with `edgekit verify`.", 2};
  }
}

void check(Error error, const std::string& what) {
  if (error != Error::Ok) throw explained(error, what);
}

double now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}

double busy_ns() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec * 1e9 + t.tv_nsec;
}

double status_mib(const char* field) {
  FILE* file = fopen("/proc/self/status", "r");
  if (!file) return 0;
  char line[256];
  double kib = 0;
  while (fgets(line, sizeof line, file)) {
    if (!strncmp(line, field, strlen(field))) kib = atof(line + strlen(field) + 1);
  }
  fclose(file);
  return kib / 1024;
}

// Let the peak begin again at what is held now, where the system can.
void forget_peak() {
  if (FILE* file = fopen("/proc/self/clear_refs", "w")) {
    fputs("5", file);
    fclose(file);
  }
}

void bind_threads(const std::string& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const char* at = cpus.c_str(); *at;) {
    char* end;
    CPU_SET(strtoul(at, &end, 10), &set);
    at = *end == ',' && end > at ? end + 1 : "";
  }
  DIR* tasks = cpus.empty() ? nullptr : opendir("/proc/self/task");
  if (!tasks) return;
  bool bound = true;
  while (dirent* task = readdir(tasks)) {
    if (int id = atoi(task->d_name)) bound &= sched_setaffinity(id, sizeof set, &set) == 0;
  }
  closedir(tasks);
  if (!bound) {
    throw Failure{"threads cannot be bound to cores " + cpus + ": " + strerror(errno), "Name cores that it has.", 1};
  }
}

long preemptions() {
  rusage usage;
  return getrusage(RUSAGE_SELF, &usage) ? 0 : usage.ru_nivcsw;
}

std::vector<char> read_file(const std::string& path) {
  FILE* file = fopen(path.c_str(), "rb");
  if (!file) throw Failure{path + ": " + strerror(errno), "Copy the artifact there again.", 1};
  std::vector<char> bytes;
  char block[1 << 16];
  while (size_t n = fread(block, 1, sizeof block, file)) bytes.insert(bytes.end(), block, block + n);
  fclose(file);
  return bytes;
}

void write_file(const std::string& path, const void* bytes, size_t size) {
  FILE* file = fopen(path.c_str(), "wb");
  const bool done = file && fwrite(bytes, 1, size, file) == size;
  if ((file && fclose(file)) || !done) {
    throw Failure{path + " cannot be written: " + strerror(errno), "Free space on the device.", 3};
  }
}

// The arrays of one sample, as the runtime takes them.
struct Inputs {
  std::vector<std::vector<char>> arrays;
  std::vector<TensorPtr> tensors;
  std::vector<EValue> values;
};

// A model file, loaded.
class Model {
 public:
  Model(const std::string& path, std::unique_ptr<ETDumpGen> tracer) : dump(tracer.get()) {
    if (access(path.c_str(), R_OK)) throw Failure{path + ": " + strerror(errno), "Copy the artifact there again.", 1};
    module_ = std::make_unique<Module>(path, Module::LoadMode::Mmap, std::move(tracer));
    check(module_->load(), path + " cannot be loaded");
    check(module_->load_method("forward"), path + " cannot be loaded");
  }

  Inputs read(int sample) {
    auto meta = module_->method_meta("forward");
    check(meta.error(), "the model's inputs");
    Inputs inputs;
    for (size_t n = 0; n < meta->num_inputs(); ++n) {
      auto info = meta->input_tensor_meta(n);
      check(info.error(), "the model's input " + std::to_string(n));
      const std::string name = "input." + std::to_string(sample) + "." + std::to_string(n) + ".bin";
      inputs.arrays.push_back(read_file(name));
      std::vector<char>& array = inputs.arrays.back();
      if (array.size() != info->nbytes()) {
        const std::string found = std::to_string(array.size()), taken = std::to_string(info->nbytes());
        throw Failure{name + " has " + found + " bytes, the model takes " + taken, "Copy the artifact there again.", 1};
      }
      const std::vector<executorch::aten::SizesType> sizes(info->sizes().begin(), info->sizes().end());
      inputs.tensors.push_back(make_tensor_ptr(sizes, array.data(), info->scalar_type()));
      inputs.values.emplace_back(inputs.tensors.back());
    }
    return inputs;
  }

  // What the clock is around. The runtime reuses its output buffers at the next call.
  void call(const Inputs& inputs) {
    auto results = module_->forward(inputs.values);
    check(results.error(), "the model cannot run");
    outputs.resize(results->size());
    for (size_t n = 0; n < outputs.size(); ++n) {
      const Tensor& tensor = (*results)[n].toTensor();
      const auto order = tensor.dim_order();
      if (!std::is_sorted(order.begin(), order.end())) {
        throw Failure{"output " + std::to_string(n) + " is not stored row by row", "Export the model again.", 2};
      }
      const char* bytes = static_cast<const char*>(tensor.const_data_ptr());
      outputs[n].assign(bytes, bytes + tensor.nbytes());
    }
  }

  std::vector<std::vector<char>> outputs;
  ETDumpGen* dump;

 private:
  std::unique_ptr<Module> module_;
};

class Session {
 public:
  explicit Session(std::string path) : path_(std::move(path)) {}

  void answer(const std::string& request) {
    double secs = 0;
    int number = 0;
    if (request == "load") return load();
    if (request == "memory") {
      fprintf(answers, "{\"peak_mib\": %.3f, \"before_mib\": %.3f}\n", status_mib("VmHWM"), before_);
      return;
    }
    if (!model_) throw Failure{"the model is not loaded", "Ask `load` first.", 1};
    if (sscanf(request.c_str(), "run %d %lf", &number, &secs) == 2) return run(number, secs);
    if (sscanf(request.c_str(), "infer %d", &number) == 1) return infer(number);
    if (sscanf(request.c_str(), "trace %d", &number) == 1) return trace(std::max(1, number));
    if (request == "count") return count();
    throw Failure{"this is no request: " + request, "The two ends are of different versions.", 1};
  }

 private:
  void load() {
    model_.reset();
    forget_peak();
    before_ = status_mib("VmRSS");
    const double start = now_ns();
    model_ = std::make_unique<Model>(path_, nullptr);
    const double loaded = now_ns();
    first_ = model_->read(0);
    const double given = now_ns();
    model_->call(first_);
    fprintf(
        answers, "{\"load_ms\": %.4f, \"first_ms\": %.4f, \"runtime\": \"ExecuTorch " EXECUTORCH_VERSION "\"}\n",
        (loaded - start) / 1e6, (now_ns() - given) / 1e6);
  }

  void run(size_t runs, double secs) {
    model_->call(first_);  // the caches were another's: not recorded
    std::vector<double> taken;
    taken.reserve(runs);
    const long lost = preemptions();
    const double busy = busy_ns(), began = now_ns();
    while (taken.size() < runs || now_ns() - began < secs * 1e9) {
      const double start = now_ns();
      model_->call(first_);
      taken.push_back((now_ns() - start) / 1e3);
    }
    const double waited = (now_ns() - began) - (busy_ns() - busy);
    const long preempted = preemptions() - lost;
    fprintf(answers, "{\"us\": [");
    for (size_t n = 0; n < taken.size(); ++n) fprintf(answers, n ? ", %.3f" : "%.3f", taken[n]);
    fprintf(
        answers, "], \"preempted\": %ld, \"waited_secs\": %.6f}\n", preempted, std::max(0.0, waited) / 1e9);
  }

  void infer(int sample) {
    model_->call(model_->read(sample));
    for (size_t n = 0; n < model_->outputs.size(); ++n) {
      const std::string name = "output." + std::to_string(sample) + "." + std::to_string(n) + ".bin";
      write_file(name, model_->outputs[n].data(), model_->outputs[n].size());
    }
    fprintf(answers, "{}\n");
  }

  void trace(int runs) {
    Model traced(path_, std::make_unique<ETDumpGen>());
    for (int n = 0; n < kWarmups; ++n) traced.call(first_);
    traced.dump->reset();
    const double start = now_ns();
    for (int n = 0; n < runs; ++n) traced.call(first_);
    const double whole = (now_ns() - start) / 1e3 / runs;
    const auto dump = traced.dump->get_etdump_data();
    if (!dump.buf) throw Failure{"ExecuTorch recorded nothing", "Leave --per-op out.", 1};
    write_file(kTrace, dump.buf, dump.size);
    free(dump.buf);
    fprintf(answers, "{\"file\": \"%s\", \"whole_us\": %.3f}\n", kTrace, whole);
  }

  void count() {
    model_->call(first_);
    syscall(kMark);
    model_->call(first_);
    syscall(kMark);
    fprintf(answers, "{}\n");
  }

  std::string path_;
  std::unique_ptr<Model> model_;
  Inputs first_;
  double before_ = 0;
};

void start(int count, char** arguments) {
  if (count < 3 || atoi(arguments[2]) < 0) {
    throw Failure{"usage: runner MODEL.pte THREADS [CPU,CPU...]", "THREADS is 0 for the runtime's own choice.", 1};
  }
  bind_threads(count > 3 ? arguments[3] : "");  // those that start later inherit it
  executorch::runtime::runtime_init();
  const int threads = atoi(arguments[2]);
  if (threads && !executorch::extension::threadpool::get_threadpool()->_unsafe_reset_threadpool(threads)) {
    throw Failure{"ExecuTorch does not take " + std::to_string(threads) + " threads", "Ask for fewer threads.", 1};
  }
}

}  // namespace

int main(int count, char** arguments) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  answers = fdopen(dup(1), "w");
  dup2(2, 1);  // what the runtime prints is no answer
  executorch::runtime::register_pal(executorch::runtime::PalImpl::create(log_message, __FILE__));
  std::unique_ptr<Session> session;
  std::string request = "";
  bool more = true;
  while (more) {
    first_error.clear();
    try {
      if (session) {
        session->answer(request);
      } else {
        start(count, arguments);
        session = std::make_unique<Session>(arguments[1]);
        fprintf(answers, "{\"pid\": %d}\n", getpid());
      }
    } catch (const Failure& failure) {
      const std::string error = quoted(failure.error), hint = quoted(failure.hint);
      fprintf(answers, "{\"error\": %s, \"hint\": %s, \"code\": %d}\n", error.c_str(), hint.c_str(), failure.code);
    } catch (const std::bad_alloc&) {
      fprintf(answers, "{\"error\": \"there is not enough memory for this model\", \"hint\": \"\", \"code\": 1}\n");
    }
    fflush(answers);
    char line[256];
    more = session && fgets(line, sizeof line, stdin);
    if (more) request.assign(line, strcspn(line, "\r\n"));
  }
  return 0;
}
