// Fits of PSFs by SEP's rules, each source on its own. One block per source.
#include "sep_fit.cuh"

// data, err, bad: planes (F, height, width); x, y, frame, valid: (n)
// For what describes the PSF, see SepPSF; for what describes the fit, SepRules. Without
// fit_positions it is one of fluxes.
// n_work: doubles of scratch of a block, in shared memory or, without in_shared, in `workspace`
// flux, fluxerr, x_fit, y_fit, chi2, flag, n_iter: (n), written from `begin` on
extern "C" __global__ void __launch_bounds__(128, 4) sep_fit_sources(
    const float* data, const float* err, const unsigned char* bad, int height, int width,
    double gain, const double* x, const double* y, const int* frame, const unsigned char* valid,
    const float* planes, int n_planes, int plane_rows, int plane_columns, int degree, float step,
    double x0, double y0, double sx, double sy, int rows, int columns, int max_iter,
    double fit_radius, double tolerance, double max_drift, double damping, int begin,
    double* workspace, int n_work, int in_shared, int fit_positions, double* flux, double* fluxerr,
    double* x_fit, double* y_fit, double* chi2, long long* flag, long long* n_iter) {
    extern __shared__ double shared[];
    __shared__ double sums[SEP_NORMAL * 6];
    const int source = begin + blockIdx.x;
    SepFit fit = {NAN, NAN, NAN, NAN, NAN, 0, 0};
    if (valid[source]) {  // the same for the whole block
        const SepImage image = sep_image(data, err, bad, height, width, frame[source], gain);
        const SepPSF psf = {planes, n_planes, plane_rows, plane_columns, degree, step,
                            x0,     y0,       sx,         sy,            rows,   columns};
        const SepRules rules = {max_iter, fit_radius, tolerance, max_drift, damping};
        double* memory = in_shared ? shared : workspace + (long long)blockIdx.x * n_work;
        const SepWork work = sep_work(psf, sums, memory);
        fit = fit_positions ? sep_fit_position(image, psf, rules, x[source], y[source], work)
                            : sep_fit_flux(image, psf, rules, x[source], y[source], work);
    }
    if (threadIdx.x > 0) return;
    flux[source] = fit.flux;
    fluxerr[source] = fit.fluxerr;
    x_fit[source] = fit.x;
    y_fit[source] = fit.y;
    chi2[source] = fit.chi2;
    flag[source] = fit.flag;
    n_iter[source] = fit.n_iter;
}
