/* A driver of CUDA over host memory: the calls that foreserve makes, with the signatures and structures of cuda.h.
 *
 * Memory is a memfd, a handle is a number of ours for one, an exported handle is a descriptor of it, an address is one of
 * this process. Read-only is read-only. What is asked for wrongly (no context, unknown handle, a copy to what is not
 * mapped for writing) is CUDA_ERROR_INVALID_VALUE, so that a mistake in calls is one here too. One GPU of
 * STAND_IN_MIB (64). A copy is not done before its stream or event is waited for.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define API __attribute__((visibility("default"))) int
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, INVALID_CONTEXT = 201 };
enum { GRAIN = 2 << 20, MOST = 256 };

typedef struct { int type, id; } Location;
typedef struct {
    int type, requestedHandleTypes;
    Location location;
    void *win32HandleMetaData;
    struct { unsigned char compressionType, gpuDirectRDMACapable; unsigned short usage; unsigned char reserved[4]; } allocFlags;
} Prop;
typedef struct { Location location; int flags; } AccessDesc;

typedef struct { int fd; size_t size; } Handle;
typedef struct { char *address; size_t size; uint64_t handle; int fd, access; } Range;
typedef struct { char *to; const void *from; size_t size; void *stream; } Copy;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int started, retained;
static __thread int current;
static Handle handles[MOST];
static Range ranges[MOST];
static Copy copies[MOST];
static int copying;
static size_t used;

static int valid(const Prop *p) {
    return p->type == 1 && p->requestedHandleTypes == 1 && p->location.type == 1 && p->location.id == 0 &&
           !p->win32HandleMetaData;
}
static size_t most(void) { const char *mib = getenv("STAND_IN_MIB"); return (size_t)(mib ? atoi(mib) : 64) << 20; }
static Range *range_of(uint64_t address, size_t size) {
    for (int i = 0; i < MOST; i++)
        if (ranges[i].address && (char *)address >= ranges[i].address &&
            (char *)address + size <= ranges[i].address + ranges[i].size) return &ranges[i];
    return NULL;
}
static void carry(void) { /* every copy that was asked for */
    for (int i = 0; i < copying; i++) memcpy(copies[i].to, copies[i].from, copies[i].size);
    copying = 0;
}
static int handle_for(int fd, size_t size, uint64_t *out) {
    for (int i = 1; i < MOST; i++)
        if (!handles[i].size) { handles[i] = (Handle){fd, size}; *out = i; return OK; }
    return OUT_OF_MEMORY;
}

API cuInit(unsigned flags) { started = 1; return flags ? INVALID_VALUE : OK; }
API cuDeviceGetCount(int *n) { *n = 1; return started ? OK : NOT_INITIALIZED; }
API cuDeviceGet(int *device, int ordinal) { *device = 0; return !started ? NOT_INITIALIZED : ordinal ? 101 : OK; }
API cuDeviceGetUuid(unsigned char *uuid, int device) { memset(uuid, 0xab, 16); return device ? 101 : OK; }
API cuDeviceGetAttribute(int *value, int attribute, int device) {
    const char *lacks = getenv("STAND_IN_LACKS");
    *value = (attribute == 102 || attribute == 103) && !(lacks && atoi(lacks) == attribute);
    return device ? 101 : OK;
}
API cuDevicePrimaryCtxRetain(void **context, int device) { retained++; *context = &retained; return device ? 101 : OK; }
API cuDevicePrimaryCtxRelease_v2(int device) { return device || !retained ? INVALID_CONTEXT : (retained--, OK); }
API stand_in_contexts(void) { return retained; } /* for tests */
API cuCtxPushCurrent_v2(void *context) { if (context != &retained || !retained) return INVALID_CONTEXT; current++; return OK; }
API cuCtxPopCurrent_v2(void **context) { *context = &retained; return current ? (current--, OK) : INVALID_CONTEXT; }
API cuCtxSynchronize(void) {
    if (!current) return INVALID_CONTEXT;
    pthread_mutex_lock(&lock); carry(); pthread_mutex_unlock(&lock);
    return OK;
}
API cuStreamCreate(void **stream, unsigned flags) { if (!current) return INVALID_CONTEXT; *stream = malloc(1); return flags > 1; }
API cuStreamDestroy_v2(void *stream) { free(stream); return current ? OK : INVALID_CONTEXT; }
API cuStreamSynchronize(void *stream) { return stream ? cuCtxSynchronize() : INVALID_VALUE; }
API cuEventCreate(void **event, unsigned flags) { if (!current) return INVALID_CONTEXT; *event = malloc(1); return flags > 7; }
API cuEventDestroy_v2(void *event) { free(event); return current ? OK : INVALID_CONTEXT; }
API cuEventRecord(void *event, void *stream) { return !current ? INVALID_CONTEXT : event && stream ? OK : INVALID_VALUE; }
API cuEventSynchronize(void *event) { return event ? cuCtxSynchronize() : INVALID_VALUE; }
API cuMemHostAlloc(void **p, size_t size, unsigned flags) {
    if (!current) return INVALID_CONTEXT;
    *p = malloc(size);
    return flags ? INVALID_VALUE : OK;
}
API cuMemFreeHost(void *p) { free(p); return current ? OK : INVALID_CONTEXT; }
API cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    if (!current) return INVALID_CONTEXT;
    pthread_mutex_lock(&lock);
    Range *range = range_of(to, size);
    int code = range && range->access == 3 && stream ? OK : INVALID_VALUE;
    if (!code) {
        if (copying == MOST) carry();
        copies[copying++] = (Copy){(char *)to, from, size, stream};
    }
    pthread_mutex_unlock(&lock);
    return code;
}
API cuMemGetAllocationGranularity(size_t *grain, const Prop *prop, int option) {
    *grain = GRAIN;
    return valid(prop) && !option ? OK : INVALID_VALUE;
}
API cuMemCreate(uint64_t *handle, size_t size, const Prop *prop, unsigned long long flags) {
    if (!valid(prop) || flags || !size || size % GRAIN) return INVALID_VALUE;
    if (used + size > most()) return OUT_OF_MEMORY;
    int fd = memfd_create("gpu", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, size)) return OUT_OF_MEMORY;
    pthread_mutex_lock(&lock);
    used += size;
    int code = handle_for(fd, size, handle);
    pthread_mutex_unlock(&lock);
    return code;
}
API cuMemRelease(uint64_t handle) {
    if (!handle || handle >= MOST || !handles[handle].size) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    close(handles[handle].fd);
    used -= handles[handle].size < used ? handles[handle].size : used;
    handles[handle] = (Handle){0, 0};
    pthread_mutex_unlock(&lock);
    return OK;
}
API cuMemExportToShareableHandle(int *fd, uint64_t handle, int type, unsigned long long flags) {
    if (type != 1 || flags || !handle || handle >= MOST || !handles[handle].size) return INVALID_VALUE;
    *fd = dup(handles[handle].fd);
    return *fd < 0;
}
API cuMemImportFromShareableHandle(uint64_t *handle, void *given, int type) {
    struct stat stat;
    if (type != 1 || fstat((int)(intptr_t)given, &stat) || !stat.st_size || stat.st_size % GRAIN) return INVALID_VALUE;
    pthread_mutex_lock(&lock);
    int code = handle_for(dup((int)(intptr_t)given), stat.st_size, handle);
    pthread_mutex_unlock(&lock);
    return code;
}
API cuMemAddressReserve(uint64_t *address, size_t size, size_t alignment, uint64_t wish, unsigned long long flags) {
    if (size % GRAIN || alignment || wish || flags) return INVALID_VALUE;
    char *found = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return OUT_OF_MEMORY;
    for (int i = 0; i < MOST; i++)
        if (!ranges[i].address) { ranges[i] = (Range){found, size, 0, -1, 0}; *address = (uint64_t)found; return OK; }
    return OUT_OF_MEMORY;
}
API cuMemAddressFree(uint64_t address, size_t size) {
    Range *range = range_of(address, size);
    if (!range || range->fd >= 0 || range->size != size) return INVALID_VALUE;
    munmap(range->address, size);
    *range = (Range){0};
    return OK;
}
API cuMemMap(uint64_t address, size_t size, size_t offset, uint64_t handle, unsigned long long flags) {
    Range *range = range_of(address, size);
    if (!range || range->fd >= 0 || offset || flags || handle >= MOST || handles[handle].size != size) return INVALID_VALUE;
    range->fd = dup(handles[handle].fd); /* like the real one it keeps the memory when the handle is released */
    return range->fd < 0;
}
API cuMemSetAccess(uint64_t address, size_t size, const AccessDesc *access, size_t count) {
    Range *range = range_of(address, size);
    if (!range || range->fd < 0 || count != 1 || access->location.type != 1 || access->location.id) return INVALID_VALUE;
    int protection = access->flags == 3 ? PROT_READ | PROT_WRITE : access->flags == 1 ? PROT_READ : -1;
    if (protection < 0) return INVALID_VALUE;
    if (mmap(range->address, size, protection, MAP_SHARED | MAP_FIXED, range->fd, 0) == MAP_FAILED) return INVALID_VALUE;
    range->access = access->flags;
    return OK;
}
API cuMemUnmap(uint64_t address, size_t size) {
    Range *range = range_of(address, size);
    if (!range || range->fd < 0 || range->size != size || copying) return INVALID_VALUE; /* the device must be idle */
    mmap(range->address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    close(range->fd);
    range->fd = -1;
    range->access = 0;
    return OK;
}
API cuGetErrorString(int code, const char **text) {
    *text = code == OUT_OF_MEMORY ? "out of memory" : code == INVALID_CONTEXT ? "invalid device context" : "invalid argument";
    return OK;
}
