// Run the naive loop and the kernel of a C file on the same inputs, for tests/test_c_files.py.
//
// Standard input, in 64-bit words: the numbers of buffers, of arguments of the naive loop, of
// arguments of the kernel before the task, and of tasks; the arguments of both; then the size in
// bytes of each buffer, followed by its contents. The argument -1 - i stands for buffer i.
// Standard output: buffer 0 as the naive loop left it, then as the kernel left it.
// Each buffer has exactly its size, so that AddressSanitizer finds accesses beyond its end.
typedef long word;
enum { MAX_ARGS = 8 };
void naive(word, word, word, word, word, word, word, word);
void optimized(word, word, word, word, word, word, word, word);

void *malloc(unsigned long size);
void free(void *buffer);
long read(int file, void *buffer, unsigned long size);
long write(int file, const void *buffer, unsigned long size);
void _exit(int status);

static void read_all(void *buffer, long size) {
  for (long done = 0; done < size;) {
    long n = read(0, (char *)buffer + done, size - done);
    if (n <= 0)
      _exit(2);
    done += n;
  }
}

static void write_all(const void *buffer, long size) {
  for (long done = 0; done < size;) {
    long n = write(1, (const char *)buffer + done, size - done);
    if (n <= 0)
      _exit(3);
    done += n;
  }
}

int main(void) {
  word counts[4], args[2][MAX_ARGS] = {};
  word sizes[MAX_ARGS];
  char *buffers[MAX_ARGS];
  read_all(counts, sizeof(counts));
  read_all(args[0], counts[1] * sizeof(word));
  read_all(args[1], counts[2] * sizeof(word));
  for (int i = 0; i < counts[0]; i++) {
    read_all(&sizes[i], sizeof(word));
    buffers[i] = malloc(sizes[i]);
    read_all(buffers[i], sizes[i]);
  }
  for (int run = 0; run < 2; run++) {
    char *out = malloc(sizes[0]);
    __builtin_memcpy(out, buffers[0], sizes[0]);
    word *a = args[run];
    for (int i = 0; i < MAX_ARGS; i++)
      if (a[i] < 0)
        a[i] = a[i] == -1 ? (word)out : (word)buffers[-1 - a[i]];
    if (run == 0)
      naive(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
    for (word task = 0; run == 1 && task < counts[3]; task++) {
      a[counts[2]] = task;
      optimized(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
    }
    write_all(out, sizes[0]);
    free(out);
  }
  for (int i = 0; i < counts[0]; i++)
    free(buffers[i]);
  return 0;
}
