// What stamps are made of, for kernels that store them and kernels that only look at them.
#pragma once
#include "common.cuh"

// Nodes of a cubic spline before the first and after the last pixel of a plane.
#define SPLINE_BEFORE 1
#define SPLINE_AFTER 2

__device__ inline bool is_finite(double value) { return fabs(value) < INFINITY; }

// A PSF made of planes.
struct Model {
    const double* planes;  // spline coefficients (n_planes, node_rows, node_columns)
    const double* light;   // sums of the planes (n_planes)
    const double* place;   // polynomial: x0, y0, sx, sy; grid: x of its columns, then y of its rows
    int n_planes, node_rows, node_columns;
    int degree;        // of the polynomial that combines the planes
    int grid_columns;  // of the grid whose nodes the planes belong to; 0 for a polynomial
    int n_sub;         // points of the model that are summed in a pixel
    double sampling;   // pixels of the stamp per pixel of the model
};

// Planes that are combined at a position.
__device__ inline int n_terms(const Model& model) {
    return model.grid_columns > 0 ? 4 : model.n_planes;
}

// Terms of the polynomial, each for its own plane.
__device__ inline void polynomial_terms(const Model& model, double x, double y, double* terms,
                                        int* plane) {
    const double u = (x - model.place[0]) / model.place[2];
    const double v = (y - model.place[1]) / model.place[3];
    double power = 1;
    int k = 0;
    for (int q = 0; q <= model.degree; ++q) {
        double term = power;
        for (int p = 0; p <= model.degree - q; ++p) {
            terms[k] = term;
            plane[k] = k;
            term *= u;
            ++k;
        }
        power *= v;
    }
}

// The node below a value, which lies `part` of the way to the next node; at least the first node
// and at most the last.
struct Between {
    int node;
    double part;
};

__device__ inline Between find_nodes(const double* nodes, int n, double value) {
    int k = 0;
    while (k + 2 < n && value >= nodes[k + 1]) ++k;
    if (n == 1) return {0, 0};
    return {k, fmax(0.0, fmin((value - nodes[k]) / (nodes[k + 1] - nodes[k]), 1.0))};
}

// Bilinear weights of the four planes around the position.
__device__ inline void bilinear_terms(const Model& model, double x, double y, double* terms,
                                      int* plane) {
    const int n_columns = model.grid_columns, n_rows = model.n_planes / n_columns;
    const Between column = find_nodes(model.place, n_columns, x);
    const Between row = find_nodes(model.place + n_columns, n_rows, y);
    for (int k = 0; k < 4; ++k) {
        const bool right = k & 1, up = k >> 1;
        terms[k] = (up ? row.part : 1 - row.part) * (right ? column.part : 1 - column.part);
        plane[k] = min(row.node + up, n_rows - 1) * n_columns + min(column.node + right, n_columns - 1);
    }
}

// Planes and their weights at a position, by one thread, so that the light of the model is 1.
__device__ inline void plane_weights(const Model& model, double x, double y, double* weights,
                                     int* plane) {
    if (model.grid_columns > 0) {
        bilinear_terms(model, x, y, weights, plane);
    } else {
        polynomial_terms(model, x, y, weights, plane);
    }
    double total = 0;
    for (int k = 0; k < n_terms(model); ++k) total += weights[k] * model.light[plane[k]];
    const double divisor = total > 0 && total < INFINITY ? total : 1;
    const double area = model.n_sub > 1 ? 1 : model.sampling * model.sampling;
    for (int k = 0; k < n_terms(model); ++k) weights[k] = weights[k] / divisor / area;
}

// How the pixels of a stamp lie on those of the model, along one axis.
struct Grid {
    int n_pixels;     // of the stamp
    int n_nodes;      // of the spline: pixels of the model and SPLINE_BEFORE + SPLINE_AFTER
    int n_sub;        // as in the model
    double sampling;  // as in the model
    double phase;     // of the star in its pixel, in [-0.5, 0.5]
};

__device__ inline int last_pixel(const Grid& grid) {
    return grid.n_nodes - SPLINE_BEFORE - SPLINE_AFTER - 1;
}

// Nodes that a pixel needs.
__device__ inline int n_taps(const Grid& grid) { return min(grid.n_sub + 3, grid.n_nodes); }

// Coordinate in the model of a point of a pixel.
__device__ inline double point_at(const Grid& grid, int pixel, int sub) {
    if (grid.n_sub > 1) return (pixel * grid.n_sub + sub) - grid.phase / grid.sampling;
    return last_pixel(grid) * 0.5 + (pixel - (grid.n_pixels / 2 + grid.phase)) / grid.sampling;
}

__device__ inline int first_node(const Grid& grid, int pixel) {
    const int node = (int)floor(point_at(grid, pixel, 0)) - 1 + SPLINE_BEFORE;
    return max(0, min(node, grid.n_nodes - n_taps(grid)));
}

__device__ inline double cubic_spline(double distance) {
    const double outer = fmax(2 - distance, 0.0), inner = fmax(1 - distance, 0.0);
    return (outer * outer * outer - 4 * (inner * inner * inner)) / 6;
}

// Weight of a node in a pixel; points outside the model have none.
__device__ inline double node_weight(const Grid& grid, int pixel, int node) {
    double weight = 0;
    for (int sub = 0; sub < grid.n_sub; ++sub) {
        const double point = point_at(grid, pixel, sub);
        if (point >= 0 && point <= last_pixel(grid))
            weight += cubic_spline(fabs(point - (node - SPLINE_BEFORE)));
    }
    return weight;
}

// First nodes and weights of n_pixels pixels from `begin` on, by the whole block.
__device__ inline void tabulate(const Grid& grid, int begin, int n_pixels, int* first,
                                double* weights) {
    const int taps = n_taps(grid);
    for (int k = threadIdx.x; k < n_pixels * taps; k += blockDim.x) {
        const int node = first_node(grid, begin + k / taps);
        weights[k] = node_weight(grid, begin + k / taps, node + k % taps);
        if (k % taps == 0) first[k / taps] = node;
    }
}

// How a stamp is cut into tiles, and the most nodes that one of them needs.
struct Tiling {
    int n_rows, n_columns;  // of the stamp
    int tile_rows, tile_columns;
    int span_rows, span_columns;
};

// Shared memory of a block that makes the tiles of a stamp, one after the other. In doubles:
// n_terms + tile_rows * (taps + span_columns) + tile_columns * taps + span_rows * span_columns;
// in ints after them: n_terms + tile_rows + tile_columns
struct Workshop {
    Grid rows, columns;
    double *weights, *weights_y, *weights_x;  // of the planes, and of the nodes along each axis
    double *nodes, *strips;                   // of the combined planes, and resampled along y
    int *plane, *first_y, *first_x;
};

__device__ inline Workshop open_workshop(const Model& model, const Tiling& tiling, double* shared) {
    Workshop work;
    work.rows = {tiling.n_rows, model.node_rows, model.n_sub, model.sampling, 0};
    work.columns = {tiling.n_columns, model.node_columns, model.n_sub, model.sampling, 0};
    work.weights = shared;
    work.weights_y = work.weights + n_terms(model);
    work.weights_x = work.weights_y + tiling.tile_rows * n_taps(work.rows);
    work.nodes = work.weights_x + tiling.tile_columns * n_taps(work.columns);
    work.strips = work.nodes + tiling.span_rows * tiling.span_columns;
    work.plane = (int*)(work.strips + tiling.tile_rows * tiling.span_columns);
    work.first_y = work.plane + n_terms(model);
    work.first_x = work.first_y + tiling.tile_rows;
    return work;
}

// Sum of the weighted values, one every `step`.
__device__ inline double resample(const double* weights, const double* values, int n, int step) {
    double sum = 0;
    for (int k = 0; k < n; ++k) sum += weights[k] * values[k * step];
    return sum;
}

// Calls take(row, column, value) for each pixel of the stamp at a position, by the whole block.
//
// The planes are combined first, then resampled by a cubic spline along the columns of the model,
// then along its rows.
template <typename Take>
__device__ inline void for_each_pixel(const Model& model, const Tiling& tiling, Workshop& work,
                                      double x, double y, Take take) {
    work.rows.phase = y - rint(y);
    work.columns.phase = x - rint(x);
    const int taps_y = n_taps(work.rows), taps_x = n_taps(work.columns), terms = n_terms(model);
    const long long plane_size = (long long)model.node_rows * model.node_columns;
    if (threadIdx.x == 0) plane_weights(model, x, y, work.weights, work.plane);
    for (int top = 0; top < tiling.n_rows; top += tiling.tile_rows) {
        const int height = min(tiling.tile_rows, tiling.n_rows - top);
        for (int left = 0; left < tiling.n_columns; left += tiling.tile_columns) {
            const int width = min(tiling.tile_columns, tiling.n_columns - left);
            __syncthreads();  // the tile before is done with
            tabulate(work.rows, top, height, work.first_y, work.weights_y);
            tabulate(work.columns, left, width, work.first_x, work.weights_x);
            __syncthreads();
            const int low = work.first_y[0], n_low = work.first_y[height - 1] + taps_y - low;
            const int near = work.first_x[0], n_near = work.first_x[width - 1] + taps_x - near;

            for (int k = threadIdx.x; k < n_low * n_near; k += blockDim.x) {
                const int node = (low + k / n_near) * model.node_columns + near + k % n_near;
                double value = 0;
                for (int b = 0; b < terms; ++b)
                    value += work.weights[b] * model.planes[work.plane[b] * plane_size + node];
                work.nodes[k] = value;
            }
            __syncthreads();
            for (int k = threadIdx.x; k < height * n_near; k += blockDim.x) {
                const int j = k / n_near;
                const double* nodes = work.nodes + (work.first_y[j] - low) * n_near + k % n_near;
                work.strips[k] = resample(work.weights_y + j * taps_y, nodes, taps_y, n_near);
            }
            __syncthreads();
            for (int k = threadIdx.x; k < height * width; k += blockDim.x) {
                const int j = k / width, i = k % width;
                const double* nodes = work.strips + j * n_near + work.first_x[i] - near;
                take(top + j, left + i, resample(work.weights_x + i * taps_x, nodes, taps_x, 1));
            }
        }
    }
}

// 2 sqrt(log 2): how much sqrt(2) sigma is smaller than the FWHM.
#define GAUSSIAN_SCALE 1.6651092223153954

// Integrals of a Gaussian over 2 half_size + 1 pixels of a row, divided by that over the row of a
// whole stamp, outside of which there is nothing; by one warp. phase: of the star in its pixel
__device__ inline void gaussian_profile(int half_size, double phase, double fwhm, double* profile) {
    const double end = ceil(3 * fwhm) + 0.5, scale = GAUSSIAN_SCALE / fwhm;
    const double light = erf((end - phase) * scale) - erf((-end - phase) * scale);
    for (int k = threadIdx.x & 31; k <= 2 * half_size; k += 32) {
        const double low = fmax(-end, fmin(k - half_size - 0.5, end));
        const double high = fmax(-end, fmin(k - half_size + 0.5, end));
        profile[k] = (erf((high - phase) * scale) - erf((low - phase) * scale)) / light;
    }
}
