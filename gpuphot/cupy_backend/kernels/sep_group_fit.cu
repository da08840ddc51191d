// Grouped PSF fits with SEP's conventions. One block per group, or per block of a large group.
//
// What members of large groups outside a block put on its pixels is known from a plane of the light
// of all members, as they were found last, less that of the members of the block.
#include "sep_group_pixels.cuh"
#include "sep_group_solve.cuh"

#define MAX_MEMBERS 64  // gpuphot.models.sep.MAX_FIT_GROUP
#define NO_FLUX 1e-12   // below it, a member is not moved
#define FAINT 1e-30     // below it, steps are not damped

// Fluxes of all members where they are, none of them negative. Their stamps stay, not normed.
// Returns whether there are enough pixels.
__device__ __noinline__ bool fit_fluxes(const Fit& fit) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    make_stamps(fit, false);
    const Box region = region_of(fit.psf, fit.image, fit.members, fit.n);
    if (area_of(region) < fit.n) {  // the whole block
        __syncthreads();
        for (int i = threadIdx.x; i < fit.n; i += THREADS) fit.members[i].flux = 0;
        __syncthreads();
        return false;
    }
    for (int i = warp; i < fit.n; i += THREADS / 32) {
        const int flag = flux_sums(fit, i);
        if (lane == 0) {
            fit.members[i].flag |= flag;
            fit.column[i] = fmax(fit.members[i].flux, 0.0);
        }
    }
    __syncthreads();
    all_pair_products<1>(fit);
    if (warp == 0) solve_positive(fit.work.matrix, fit.work.rhs, fit.n, fit.column);
    __syncthreads();
    for (int i = threadIdx.x; i < fit.n; i += THREADS) fit.members[i].flux = fit.column[i];
    __syncthreads();
    return true;
}

// Takes the fluxes of all bright members at the same time instead, if they are positive: blocks
// need not stop where SEP does. solution: (n), what the factor left of the right-hand side
__device__ inline void take_exact_fluxes(const Fit& fit, const double* factor, double* solution) {
    if (threadIdx.x < 32) substitute_back(factor, fit.n, solution);
    __syncthreads();
    bool positive = true;
    for (int i = threadIdx.x; i < fit.n; i += THREADS)
        positive &= !(fit.members[i].flux > 0) || solution[i] > 0;
    if (!__syncthreads_and(positive)) return;  // the whole block
    for (int i = threadIdx.x; i < fit.n; i += THREADS)
        if (fit.members[i].flux > 0) fit.members[i].flux = solution[i];
    __syncthreads();
}

// Variances of the fluxes just found, in `solution`. Members without flux do not matter to others.
__device__ inline void flux_variances(const Fit& fit) {
    const int n = fit.n, n_rows = n + (fit.has_light ? 1 : 0);
    const double* matrix = fit.work.matrix;
    double *factor = fit.work.matrix + n * n, *last_row = factor + n * n, *scratch = last_row + n;
    for (int k = threadIdx.x; k < n_rows * n; k += THREADS) {
        const int i = k / n, j = k % n;
        const bool bright = fit.members[j].flux > 0;
        if (i == n) {
            factor[k] = bright ? fit.work.rhs[j] : 0;
        } else {
            factor[k] = bright && fit.members[i].flux > 0 ? matrix[k] : (i == j ? 1 : 0);
        }
    }
    __syncthreads();
    if (factorise(factor, n, n_rows, fit.column)) {  // the whole block
        inverse_diagonal(factor, n, scratch, fit.work.solution);
        if (fit.has_light) take_exact_fluxes(fit, factor, last_row);
        return;
    }
    for (int i = threadIdx.x; i < n; i += THREADS) fit.work.solution[i] = 1 / matrix[i * n + i];
    __syncthreads();
}

// Solution of the normal equations, damped if wanted. Of singular ones it is the least one.
__device__ inline void solve_step(const Fit& fit) {
    const int m = 3 * fit.n;
    double* matrix = fit.work.matrix;
    double *solution = fit.work.solution, *last_row = matrix + m * m;
    for (int k = threadIdx.x; k < m; k += THREADS) {
        const Member& member = fit.members[k / 3];
        const bool damped = fit.rules.damping > 0 && k % 3 != 0 && fabs(member.flux) > FAINT;
        const double weight = damped ? fit.rules.damping / (member.flux * member.flux) : 0;
        const double displacement = k % 3 == 1 ? member.dx : member.dy;
        fit.work.diagonal[k] = matrix[k * m + k];
        matrix[k * m + k] += weight;
        last_row[k] = fit.work.rhs[k] + (damped ? weight * member.flux * displacement : 0);
    }
    __syncthreads();
    if (factorise(matrix, m, m + 1, fit.column)) {  // the whole block
        for (int k = threadIdx.x; k < m; k += THREADS) solution[k] = last_row[k];
        __syncthreads();
        if (threadIdx.x < 32) substitute_back(matrix, m, solution);
        __syncthreads();
        return;
    }
    __syncthreads();
    for (int k = threadIdx.x; k < m * m; k += THREADS) {
        const int i = k / m, j = k % m;
        if (j < i) matrix[k] = matrix[j * m + i];
        if (j == i) matrix[k] = fit.work.diagonal[i];
    }
    __syncthreads();
    solve_singular(matrix, m, fit.work.rhs, fit.column, solution);
}

// Moves a member by half of its step. Returns the square of what it is moved by.
__device__ inline double move_member(Member& member, const double* step, double farthest) {
    double flux = step[0] > 0 && isfinite(step[0]) ? step[0] : 0;
    double right = 0, up = 0;
    if (flux > NO_FLUX) {
        right = -step[1] / (2 * flux);
        up = -step[2] / (2 * flux);
    }
    const double dx = member.dx + right, dy = member.dy + up;
    if (!isfinite(right) || !isfinite(up)) {
        flux = right = up = 0;
    } else if (dx * dx + dy * dy > farthest * farthest) {
        right = up = 0;
    } else {
        member.dx = dx;
        member.dy = dy;
    }
    member.flux = flux;
    return right * right + up * up;
}

// Positions of all members. Returns the number of steps; 0 if there are too few pixels.
__device__ inline int fit_all_positions(const Fit& fit) {
    const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
    const double tolerance = fit.rules.tolerance * fit.rules.tolerance;
    if (fit.rules.damping > 0) fit_fluxes(fit);
    Box region = whole_image(fit.image);
    for (int n_iter = 1;; ++n_iter) {
        make_stamps(fit, true);
        if (n_iter == 1) {
            region = region_of(fit.psf, fit.image, fit.members, fit.n);
            if (area_of(region) < 3 * fit.n) return 0;  // the whole block
        }
        for (int i = warp; i < fit.n; i += THREADS / 32) {
            const int flag = member_sums(fit, region, i);
            if (lane == 0 && n_iter == 1) fit.members[i].flag |= flag;
        }
        __syncthreads();
        all_pair_products<3>(fit);
        solve_step(fit);
        bool moving = false;
        for (int i = threadIdx.x; i < fit.n; i += THREADS)
            moving |= move_member(fit.members[i], fit.work.solution + 3 * i,
                                  fit.rules.max_drift) > tolerance;
        if (!__syncthreads_or(moving) || n_iter == fit.rules.max_iter) return n_iter;
    }
}

// Reduced chi-squared of a member's pixels without what the fit puts there, by a warp.
__device__ inline double chi_squared(const Fit& fit, int k) {
    const int lane = threadIdx.x & 31, n_columns = fit.psf.columns;
    const int size = fit.psf.rows * n_columns;
    const Box image = whole_image(fit.image);
    const Member& member = fit.members[k];
    double chi2 = 0, count = 0;
    for (int p = lane; p < size; p += 32) {
        const int column = member.left + p % n_columns, row = member.top + p / n_columns;
        if (!is_inside(image, column, row) || !fit.reaches(member, column, row)) continue;
        const Pixel pixel = fit.pixel(column, row);
        if (pixel.q == 0) continue;
        double residual = pixel.g;
        for (int i = 0; i < fit.n; ++i) {
            const Member& other = fit.members[i];
            const int x = column - other.left, y = row - other.top;
            if (x < 0 || x >= n_columns || y < 0 || y >= fit.psf.rows || !(other.sum > 0)) continue;
            if (!fit.lights(other, column, row)) continue;
            const float value = fit.work.stamps[(long long)i * size + y * n_columns + x];
            residual -= other.flux * (value / other.sum) * pixel.q;
        }
        chi2 += residual * residual;
        count += 1;
    }
    chi2 = warp_sum(chi2);
    count = warp_sum(count);
    return count > 3 ? chi2 / (count - 3) : 0;
}

// Members of a group: where they are, and what the plane of light has of them.
//
// rows: of the members among all sources; x0, y0, x, y, flux: of all sources
__device__ inline void load_members(const Fit& fit, const int* rows, const double* x0,
                                    const double* y0, const double* x, const double* y,
                                    const double* flux) {
    const int size = fit.psf.rows * fit.psf.columns;
    for (int i = threadIdx.x; i < fit.n; i += THREADS) {
        Member& member = fit.members[i];
        const int source = rows[i];
        member.source = source;
        member.x = x0[source];
        member.y = y0[source];
        member.dx = x[source] - x0[source];
        member.dy = y[source] - y0[source];
        member.flux = flux[source];
        member.flag = 0;
    }
    __syncthreads();
    if (!fit.has_light) return;  // the whole block
    make_stamps(fit, false);
    for (int i = threadIdx.x; i < fit.n; i += THREADS) {
        Member& member = fit.members[i];
        member.old_left = member.left;
        member.old_top = member.top;
        member.old_scale = member.sum > 0 ? member.flux / member.sum : 0;
    }
    for (long long k = threadIdx.x; k < (long long)fit.n * size; k += THREADS)
        fit.work.old_stamps[k] = fit.work.stamps[k];
    __syncthreads();
}

// Fits groups, or blocks of large ones. Blocks of threads take one after the other.
//
// See SepPSF and SepRules for what describes the model and the fit.
// data, err, bad, light: planes (F, height, width); light: without has_light, it is 0
// systems: (n_systems), those to fit, with at most max_count members; begin, count: of each system,
// its members in `rows`; home: (n), the system that a source gets its results from
// x0, y0, frame, x, y, flux: (n), where sources were at first, their planes, and where they are
// new_flux to n_iter: (n), results; alone: (n), whether a source has to be fitted alone
// workspace: n_workspace doubles for each block
extern "C" __global__ void __launch_bounds__(128, 4) sep_fit_groups(
    const float* planes, int n_planes, int height_psf, int width_psf, int degree, float step,
    double psf_x0, double psf_y0, double psf_sx, double psf_sy, int rows_psf, int columns_psf,
    const float* data, const float* err, const unsigned char* bad, const double* light,
    int has_light, int height, int width, double gain, int fit_positions, int max_iter,
    double fit_radius, double tolerance, double max_drift, double damping, const int* systems,
    int n_systems, int max_count, const int* begin, const int* count, const int* rows,
    const int* home, const double* x0, const double* y0, const int* frame, const double* x,
    const double* y, const double* flux, double* workspace, long long n_workspace,
    double* new_flux, double* fluxerr, double* new_x, double* new_y, long long* flag,
    double* chi2, long long* n_iter, unsigned char* alone) {
    __shared__ Member members[MAX_MEMBERS];
    __shared__ double of_warp[THREADS / 32], column[3 * MAX_MEMBERS + 1];
    __shared__ Fit fit;  // registers would not hold all of it
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    for (int k = blockIdx.x; k < n_systems; k += gridDim.x) {
        const int system = systems[k], n = count[system];
        const int* of_system = rows + begin[system];
        __syncthreads();  // the fit before is done with
        if (threadIdx.x == 0) {
            const long long plane = (long long)frame[of_system[0]] * height * width;
            fit.psf = {planes, n_planes, height_psf, width_psf, degree,   step,
                       psf_x0, psf_y0,   psf_sx,     psf_sy,    rows_psf, columns_psf};
            fit.image = sep_image(data, err, bad, height, width, frame[of_system[0]], gain);
            fit.light = light + (has_light ? plane : 0);
            fit.has_light = has_light;
            fit.rules = {max_iter, fit_radius, tolerance, max_drift, damping};
            fit.members = members;
            fit.n = n;
            fit.work = workspace_of(fit.psf, workspace + blockIdx.x * n_workspace, max_count,
                                    has_light);
            fit.of_warp = of_warp;
            fit.column = column;
        }
        __syncthreads();
        load_members(fit, of_system, x0, y0, x, y, flux);
        int n_steps = 0;
        if (fit_positions) {
            n_steps = fit_all_positions(fit);
            if (n_steps == 0) {  // the whole block
                for (int i = threadIdx.x; i < n; i += THREADS)
                    if (home[members[i].source] == system) alone[members[i].source] = 1;
                continue;
            }
        }
        const bool has_fluxes = fit_fluxes(fit);
        if (has_fluxes) flux_variances(fit);
        for (int i = warp; i < n; i += THREADS / 32) {
            const Member& member = members[i];
            const int source = member.source;
            if (home[source] != system) continue;  // the whole warp
            const double of_pixels = fit_positions ? chi_squared(fit, i) : NAN;
            if (lane != 0) continue;
            new_flux[source] = member.flux;
            const double variance =
                fit.work.solution[i] + fit.image.photon_noise(member.flux);
            fluxerr[source] = member.flux > 0 ? sqrt(variance) : 0;
            new_x[source] = member.x + member.dx;
            new_y[source] = member.y + member.dy;
            flag[source] = member.flag;
            chi2[source] = of_pixels;
            n_iter[source] = n_steps;
        }
    }
}
