/* A plugin of QEMU's user emulation: how many instructions a thread executed between two marks that it made.
 *
 * A mark is a system call of a number that no system has. At every second one the count is written to the file that is
 * given as `out=FILE`. What other threads execute meanwhile is not counted.
 *
 * Distributions do not package qemu-plugin.h; these are the declarations that are used here, by QEMU's documentation
 * of its plugin interface (API versions 1 and later).
 */

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#ifndef API_VERSION
#define API_VERSION 1
#endif

typedef uint64_t plugin_id;
struct qemu_plugin_tb;

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, void (*translated)(plugin_id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_cb(
    struct qemu_plugin_tb *block, void (*executed)(unsigned, void *), int registers_used, void *data);
void qemu_plugin_register_vcpu_syscall_cb(
    plugin_id id,
    void (*called)(
        plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));

#define EXPORT __attribute__((visibility("default")))

EXPORT int qemu_plugin_version = API_VERSION;

#define MARK 0x65646765
#define NOBODY (-1)
static uint64_t executed;
static int64_t counted = NOBODY;
static char out[4096];

static void on_executed(unsigned cpu, void *instructions) {
  if (cpu == counted) executed += (uint64_t)(uintptr_t)instructions;
}

static void on_translated(plugin_id id, struct qemu_plugin_tb *block) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_cb(block, on_executed, 0, (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void on_system_call(
    plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5,
    uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number != MARK) return;
  if (counted == NOBODY) {
    executed = 0;
    counted = cpu;
  } else if (counted == cpu) {
    counted = NOBODY;
    FILE *file = fopen(out, "w");
    if (file) {
      fprintf(file, "%" PRIu64 "\n", executed);
      fclose(file);
    }
  }
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int count, char **arguments) {
  (void)info;
  if (count != 1 || strncmp(arguments[0], "out=", 4) || strlen(arguments[0] + 4) >= sizeof out) return -1;
  strcpy(out, arguments[0] + 4);
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
  qemu_plugin_register_vcpu_syscall_cb(id, on_system_call);
  return 0;
}
