/*
 * Imports the nuclei that `ama-sam slide` or `ama-sam segment` found in the open image, as detections. For QuPath 0.4
 * to 0.6.
 *
 * Name the folder of results below, open the slide, open this file in Automate > Script editor, Run (or Run for
 * project). Detections of an earlier run are replaced, other objects stay.
 */

import static qupath.lib.scripting.QP.*

import qupath.lib.io.PathIO

// --- what to change

def results = "/path/to/OUT"  // the --output_dir

// ---

def name = new File(getCurrentServer().getURIs().first()).getName()
def stem = name.contains(".") ? name.substring(0, name.lastIndexOf(".")) : name
def files = [new File(results, stem + "/nuclei.geojson"), new File(results, stem + ".geojson")]
def file = files.find { it.isFile() }
if (file == null)
    throw new FileNotFoundException("There is no " + files.join(", and no ") + "; correct 'results' in the script")

def nuclei = file.withInputStream { PathIO.readObjectsFromGeoJSON(it) }
def hierarchy = getCurrentHierarchy()
// ours bear a measurement that no other detections have
def old = hierarchy.getDetectionObjects().findAll { it.getMeasurementList().containsKey("haematoxylin_od") }
hierarchy.removeObjects(old, true)
hierarchy.addObjects(nuclei)
fireHierarchyUpdate()
println(nuclei.size() + " nuclei from " + file)
