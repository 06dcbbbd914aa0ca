// Run a step of graph_runner.c with several worker threads, and compare with its naive loop, for
// tests/test_c_files.py. The exit status is 1 if they differ.
//
// Each command reads all of what the command before it wrote, so it must not begin earlier.
typedef unsigned long long word;
enum { N = 1000, COMMANDS = 40, WORKERS = 3, STEPS = 200, MAX_ARGS = 61 };

// The layout of graph_runner.c.
typedef struct {
  word kernel, num_tasks, task_arg, num_args, args[MAX_ARGS - 1];
} command;
typedef struct {
  word ticket, padding1[15], done, padding2[15];
  command commands[COMMANDS];
} step;
void naive(step *s, word num_commands);
void run(step *s, word num_commands, int (*yield_core)(void));
void work(step *s, word num_commands, int (*yield_core)(void));

int sched_yield(void);
int pthread_create(unsigned long *thread, const void *attributes, void *(*start)(void *),
                   void *argument);
int pthread_join(unsigned long thread, void **result);

// Write one task's part of out (N) from all of in (N).
static void mix(word *out, const word *in, word task, word num_tasks) {
  for (word i = N * task / num_tasks; i < N * (task + 1) / num_tasks; i++)
    out[i] = in[i * 7 % N] * 3 + in[N - 1 - i] + task;
}

// out[i] = in[i] + the sum of the arguments x: a kernel with 60 arguments.
#define WORDS_11(x) \
  word x##0, word x##1, word x##2, word x##3, word x##4, word x##5, word x##6, word x##7, \
      word x##8, word x##9, word x##10
#define SUM_11(x) (x##0 + x##1 + x##2 + x##3 + x##4 + x##5 + x##6 + x##7 + x##8 + x##9 + x##10)
static void add_many(word *out, const word *in, WORDS_11(a), WORDS_11(b), WORDS_11(c), WORDS_11(d),
                     WORDS_11(e), word f, word task, word num_tasks) {
  word sum = SUM_11(a) + 2 * SUM_11(b) + 3 * SUM_11(c) + 5 * SUM_11(d) + 7 * SUM_11(e) + 9 * f;
  for (word i = N * task / num_tasks; i < N * (task + 1) / num_tasks; i++)
    out[i] = in[i] + sum;
}

static step steps;

static void fill(word *even, word *odd) {
  for (word i = 0; i < N; i++)
    even[i] = i * i;
  for (word n = 0; n < COMMANDS; n++) {
    command *c = steps.commands + n;
    int many = n % 8 == 3;
    c->num_tasks = 1 + n * 5 % 7;
    c->num_args = many ? MAX_ARGS - 1 : 4;
    c->kernel = many ? (word)add_many : (word)mix;
    c->task_arg = c->num_args - 2;
    for (word i = 0; i < c->num_args; i++)
      c->args[i] = i * n;
    c->args[0] = (word)(n % 2 ? even : odd);
    c->args[1] = (word)(n % 2 ? odd : even);
    c->args[c->num_args - 1] = c->num_tasks;
  }
}

static void *worker(void *unused) {
  work(&steps, COMMANDS, sched_yield);
  return unused;
}

int main(void) {
  static word expected[2][N], actual[2][N];
  fill(expected[0], expected[1]);
  naive(&steps, COMMANDS);
  for (int n = 0; n < STEPS; n++) {
    unsigned long threads[WORKERS];
    fill(actual[0], actual[1]);
    steps.ticket = 0xffffffff; // a step that has begun but has no task to take yet
    for (int i = 0; i < WORKERS; i++)
      pthread_create(&threads[i], 0, worker, 0);
    run(&steps, COMMANDS, sched_yield);
    for (int i = 0; i < WORKERS; i++)
      pthread_join(threads[i], 0);
    for (int i = 0; i < N; i++)
      if (actual[0][i] != expected[0][i] || actual[1][i] != expected[1][i])
        return 1;
  }
  return 0;
}
