// Stands in for NVIDIA's driver (libcuda) and compiler (NVRTC): tests of the host side read in fake_events what it was told.
// Three devices: an H100 (90), one that the compiler is too old for (120), and one that is too old for the kernels (75). "Machine code" is the compiler's options.
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

static std::mutex gate;
static std::string events;
static void say(const std::string& event) { std::lock_guard<std::mutex> hold(gate); events += event + "\n"; }

// What happened since the last call.
EXPORT const char* fake_events()
{
    static std::string last;
    std::lock_guard<std::mutex> hold(gate);
    last.swap(events);
    events.clear();
    return last.c_str();
}

// ---- compiler

struct Program { std::string source, options, log; };

EXPORT int nvrtcVersion(int* major, int* minor) { *major = 12; *minor = 4; return 0; }
EXPORT int nvrtcGetNumSupportedArchs(int* count) { *count = 3; return 0; }
EXPORT int nvrtcGetSupportedArchs(int* known) { known[0] = 75; known[1] = 80; known[2] = 90; return 0; }
EXPORT const char* nvrtcGetErrorString(int error) { return error == 6 ? "NVRTC_ERROR_COMPILATION" : "NVRTC_ERROR"; }
EXPORT int nvrtcCreateProgram(Program** program, const char* source, const char*, int, const char* const*, const char* const*) { *program = new Program{ source, "", "" }; return 0; }
EXPORT int nvrtcDestroyProgram(Program** program) { delete *program; *program = nullptr; return 0; }
EXPORT int nvrtcCompileProgram(Program* program, int count, const char* const* options)
{
    for (int i = 0; i < count; i++) program->options += std::string(i ? " " : "") + options[i];
    say("compile " + program->options);
    if (program->options.find("-DFAIL") == std::string::npos) return 0;
    program->log = "probe.cu(3): error: identifier \"FAIL\" is undefined";
    return 6;
}
EXPORT int nvrtcGetProgramLogSize(Program* program, size_t* size) { *size = program->log.size() + 1; return 0; }
EXPORT int nvrtcGetProgramLog(Program* program, char* to) { strcpy(to, program->log.c_str()); return 0; }
EXPORT int nvrtcGetCUBINSize(Program* program, size_t* size) { *size = program->options.size() + 7; return 0; }
EXPORT int nvrtcGetCUBIN(Program* program, char* to) { strcpy(to, ("CUBIN " + program->options).c_str()); return 0; }
EXPORT int nvrtcGetPTXSize(Program* program, size_t* size) { *size = program->options.size() + 5; return 0; }
EXPORT int nvrtcGetPTX(Program* program, char* to) { strcpy(to, ("PTX " + program->options).c_str()); return 0; }

// ---- driver

struct Context { int device; };
struct Module { Context* context; std::string image; };
struct Function { Module* module; std::string name; int shared; };

static Context contexts[3] = { { 0 }, { 1 }, { 2 } };
static thread_local std::vector<Context*> stack;
static const int capability[3] = { 90, 120, 75 }, shared_limit[3] = { 232448, 101376, 65536 };

EXPORT int cuInit(unsigned) { return 0; }
EXPORT int cuDriverGetVersion(int* version) { *version = 12080; return 0; }
EXPORT int cuGetErrorName(int error, const char** name) { *name = error == 1 ? "CUDA_ERROR_INVALID_VALUE" : error == 101 ? "CUDA_ERROR_INVALID_DEVICE" : error == 201 ? "CUDA_ERROR_INVALID_CONTEXT" : error == 500 ? "CUDA_ERROR_NOT_FOUND" : nullptr; return *name ? 0 : 1; }
EXPORT int cuGetErrorString(int error, const char** text) { *text = error == 1 ? "invalid argument" : "something else"; return 0; }
EXPORT int cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal < 3 ? 0 : 101; }
EXPORT int cuDeviceGetName(char* to, int, int device) { strcpy(to, ("Fake " + std::to_string(device)).c_str()); return 0; }
EXPORT int cuDeviceGetAttribute(int* value, int which, int device)
{
    *value = which == 75 ? capability[device] / 10 : which == 76 ? capability[device] % 10 : shared_limit[device];
    return which == 75 || which == 76 || which == 97 ? 0 : 1;
}
EXPORT int cuDevicePrimaryCtxRetain(Context** context, int device) { *context = &contexts[device]; return 0; }
EXPORT int cuCtxGetCurrent(Context** context) { *context = stack.empty() ? nullptr : stack.back(); return 0; }
EXPORT int cuCtxPushCurrent_v2(Context* context) { stack.push_back(context); return 0; }
EXPORT int cuCtxPopCurrent_v2(Context** context) { *context = stack.back(); stack.pop_back(); return 0; }
EXPORT int cuModuleLoadData(Module** module, const char* image)
{
    if (stack.empty()) return 201;
    say("load on " + std::to_string(stack.back()->device) + ": " + image);
    *module = new Module{ stack.back(), image };
    return 0;
}
EXPORT int cuModuleGetFunction(Function** function, Module* module, const char* name)
{
    *function = new Function{ module, name, 48 << 10 };
    return strcmp(name, "missing") == 0 ? 500 : 0;
}
EXPORT int cuFuncSetAttribute(Function* function, int which, int value)
{
    if (which != 8 || value > shared_limit[function->module->context->device]) return 1;
    say("shared " + std::to_string(value));
    function->shared = value;
    return 0;
}
EXPORT int cuLaunchKernel(Function* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream, void** parameters, void** extra)
{
    if (stack.empty() || f->module->context != stack.back()) return 201;
    if (bx > 1024 || by != 1 || bz != 1 || (int)shared > f->shared || stream || extra) return 1;
    int first = *(const int*)parameters[0];
    if (first >= 0) say("launch " + f->name + " on " + std::to_string(stack.back()->device) + ": " + std::to_string(gx) + " " + std::to_string(gy) + " " + std::to_string(gz) + ", " + std::to_string(bx) + ", " + std::to_string(shared) + ", " + std::to_string(first));
    return 0;
}
