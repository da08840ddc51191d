// The cubic B-spline surface over the cells of a background mesh.
#pragma once

struct Surface {
    const double* coefficients;  // (n_rows, n_columns) nodes, two mirrored ones on every side
    int n_columns;
    int cell_height, cell_width;
    double low, high;  // the surface is clipped to them
};

// Spline weights of a pixel on four nodes along one axis; returns the first of these nodes.
__device__ inline int spline_weights(int pixel, int cell, double weights[4]) {
    const double u = (pixel + 0.5) / cell - 0.5, k = floor(u), t = u - k;
    weights[0] = (1 - t) * (1 - t) * (1 - t) / 6;
    weights[1] = (4 - 6 * t * t + 3 * t * t * t) / 6;
    weights[2] = (1 + 3 * t + 3 * t * t - 3 * t * t * t) / 6;
    weights[3] = t * t * t / 6;
    return (int)k + 1;
}

__device__ inline double surface_at(const Surface& surface, int row, int column) {
    double wy[4], wx[4];
    const int first_row = spline_weights(row, surface.cell_height, wy);
    const int first_column = spline_weights(column, surface.cell_width, wx);
    double value = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const double* node = surface.coefficients +
                             (long long)(first_row + j) * surface.n_columns + first_column;
        double along_row = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) along_row += wx[i] * node[i];
        value += wy[j] * along_row;
    }
    return fmin(fmax(value, surface.low), surface.high);
}
