// Formulae whose results depend on whether a product and a sum are rounded once or twice.

extern "C" __global__ void __launch_bounds__(64) half_chord(
    const double* r, double* naive, double* robust) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const double u = fmin(fmax(2.0 * r[i], -r[i]), r[i]);  // clipped to the rim: u = r
    naive[i] = sqrt(r[i] * r[i] - u * u);  // contracted, the difference may be below 0
    robust[i] = sqrt((r[i] - u) * (r[i] + u));
}

// Counts the pixels of a row within r, whose end lies exactly on a pixel.
extern "C" __global__ void __launch_bounds__(64) pixel_count(
    const double* r, double* naive, double* robust) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    int n_naive = 0, n_robust = 0;
    for (int k = 0; k < 4; ++k) {
        const double u = r[i] * (1.0 - 0.25 * k), v = fabs(u);
        n_naive += r[i] * r[i] - u * v >= 0.0;
        n_robust += (r[i] - v) * (r[i] + v) >= 0.0;
    }
    naive[i] = n_naive;
    robust[i] = n_robust;
}
