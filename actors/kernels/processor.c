/* Which of the kernels this processor can run, and which kernels these are. */

/* Raised with every change of a function's name, arguments or meaning; `actors/kernels/__init__.py` asks for the same. */
int interface_version(void) { return 6; }

/* 0: none. 1: AVX2. 2: AVX-512. 3: AVX-512 with products of bfloat16. Each has what those before it have. */
int instruction_set(void) {
#if defined(__x86_64__)
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
        !__builtin_cpu_supports("avx512dq"))
        return 1;
    return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
#else
    return 0;
#endif
}
