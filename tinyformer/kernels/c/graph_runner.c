// A step is a list of commands: a kernel, its number of tasks and its arguments. The tasks of a
// command run on whichever thread takes them. The upper half of `ticket` is the index of the
// current command, the lower half its next task. A thread takes a task by compare-and-swap, so a
// worker that arrives late, or never, delays no other thread.
#include "abi.h"

typedef unsigned long long word;
enum { MAX_ARGS = 61 }; // arguments of a kernel, including the task
enum { FEW_ARGS = 12 }; // most kernels have few arguments, and are called with this many

typedef struct {
  word kernel, num_tasks, task_arg, num_args, args[MAX_ARGS - 1];
} command;
typedef int ABI yield_function(void);
// ticket and done are on cache lines of their own.
typedef struct {
  volatile word ticket, padding1[15], done, padding2[15];
  command commands[];
} step;
#define INLINE static inline __attribute__((always_inline))

#define WORDS_12 word, word, word, word, word, word, word, word, word, word, word, word
typedef void ABI few_args_kernel(WORDS_12);
typedef void ABI many_args_kernel(WORDS_12, WORDS_12, WORDS_12, WORDS_12, WORDS_12, word);
#define ARGS_4(i) args[i], args[i + 1], args[i + 2], args[i + 3]
#define ARGS_12(i) ARGS_4(i), ARGS_4(i + 4), ARGS_4(i + 8)

// Call the command's kernel for one task. task_arg is the index of the argument that is the task.
// A kernel ignores the arguments that it does not have.
INLINE void run_task(command *c, word task) {
  word args[MAX_ARGS];
  for (word i = 0; i < c->num_args; i++)
    args[i] = i == c->task_arg ? task : c->args[i];
  if (c->num_args <= FEW_ARGS)
    ((few_args_kernel *)c->kernel)(ARGS_12(0));
  else
    ((many_args_kernel *)c->kernel)(ARGS_12(0), ARGS_12(12), ARGS_12(24), ARGS_12(36), ARGS_12(48),
                                    args[60]);
}

// Wait a moment. After 256 waits, yield the core: the awaited thread may need it.
INLINE void backoff(word waits, yield_function *yield_core) {
  if (waits >= 256) {
    yield_core();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Take and run one more task of the current command. Return 0 if there is none left.
INLINE int take_task(step *s, word ticket) {
  command *c = s->commands + (ticket >> 32);
  if ((ticket & 0xffffffff) >= c->num_tasks)
    return 0;
  if (!__atomic_compare_exchange_n(&s->ticket, &ticket, ticket + 1, 0, __ATOMIC_ACQ_REL,
                                   __ATOMIC_RELAXED))
    return 0;
  run_task(c, ticket & 0xffffffff);
  __atomic_fetch_add(&s->done, 1, __ATOMIC_RELEASE);
  return 1;
}

#ifdef NAIVE
// The definition of `run`: all commands in order, and all tasks of each.
void naive(step *s, word num_commands) {
  for (word i = 0; i < num_commands; i++)
    for (word task = 0; task < s->commands[i].num_tasks; task++)
      run_task(s->commands + i, task);
}
#endif

#ifdef WORKER
// Help with a step until its last command is done, or until there was no task for about a second.
ABI void work(step *s, word num_commands, yield_function *yield_core) {
  for (word idle = 0; idle < 1 << 22; idle++) {
    word ticket = __atomic_load_n(&s->ticket, __ATOMIC_ACQUIRE);
    if (ticket >> 32 == num_commands)
      return;
    if (take_task(s, ticket))
      idle = 0;
    else
      backoff(idle, yield_core);
  }
}
#else
// Run all commands of a step in order, each after the tasks of the one before are done.
ABI void run(step *s, word num_commands, yield_function *yield_core) {
  for (word i = 0; i < num_commands; i++) {
    command *c = s->commands + i;
    if (c->num_tasks == 1) {
      run_task(c, 0);
      continue;
    }
    __atomic_store_n(&s->done, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&s->ticket, i << 32, __ATOMIC_RELEASE);
    for (;;) {
      word ticket = __atomic_load_n(&s->ticket, __ATOMIC_ACQUIRE);
      if ((ticket & 0xffffffff) >= c->num_tasks)
        break;
      take_task(s, ticket);
    }
    for (word waits = 0; __atomic_load_n(&s->done, __ATOMIC_ACQUIRE) < c->num_tasks; waits++)
      backoff(waits, yield_core);
  }
  __atomic_store_n(&s->ticket, num_commands << 32, __ATOMIC_RELEASE);
}
#endif
