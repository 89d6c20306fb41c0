package qupath.lib.regions

class RegionRequest {
    int x, y, width, height

    static RegionRequest createInstance(String path, double downsample, Object roi) {
        assert downsample == 1.0d
        return new RegionRequest(x: roi.box[0], y: roi.box[1], width: roi.box[2], height: roi.box[3])
    }
}
